"""The phases that linear layers are made of, for workers that share them out; see `kernels.cpu_workers`.

Knows rows, panels and their order. Does not know layers. Integers named like tensors are addresses of fp32 numbers.
"""

from typing import Any

import numba
import numpy as np

from kernels.cpu_vectors import (
    BFLOATS,
    COLUMNS,
    FLOAT_BYTES,
    FLOATS,
    HALVES,
    SHORT_BYTES,
    TILE_ROWS,
    floats_at,
    has_halves,
    multiply_bfloat_tile,
    multiply_half_tile,
    multiply_tile,
)
from kernels.cpu_workers import take, take_next, wait
from kernels.rms_norm.cpu_rows import LANES, normalize_row

ROWS_PER_ITEM = 16 * TILE_ROWS
HAS_HALVES = has_halves()
DEPTH_PER_PASS = 1536  # rows of a panel that stay in the second-level cache while rows of x come by


@numba.njit
def size_of(kind: int) -> int:
    """Return the bytes of a weight's number."""
    return FLOAT_BYTES if kind == FLOATS else SHORT_BYTES


@numba.njit
def multiply(
    member: Any,
    phase: int,
    num_rows: int,
    x: int,
    x_stride: int,
    weights: int,
    kind: int,
    depth: int,
    width: int,
    start: int,
    start_stride: int,
    out: int,
    out_stride: int,
) -> None:
    """Compute out[r, n] = start[r, n] + sum_k x[r, k] W[n, k] for all rows and n < width, from packed W.

    `kind` is that of W. `start` may be `out` itself; a start_stride of 0 starts every row alike. `start` has a whole
    number of panels' columns where it is not `out`.
    """
    num_panels = (width + COLUMNS - 1) // COLUMNS
    num_chunks = (num_rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM
    num_items = num_panels * num_chunks
    item = take(member, phase, num_items)
    while item < num_items:
        panel, first = item % num_panels, item // num_panels * ROWS_PER_ITEM
        column = panel * COLUMNS
        rows = min(ROWS_PER_ITEM, num_rows - first)
        panel_start = start + (first * start_stride + column) * FLOAT_BYTES
        panel_out = out + (first * out_stride + column) * FLOAT_BYTES
        panel_x, panel_weights = x + first * x_stride * FLOAT_BYTES, weights + panel * depth * COLUMNS * size_of(kind)
        if column + COLUMNS <= width:
            multiply_panel(
                rows, panel_x, x_stride, panel_weights, kind, depth, panel_start, start_stride, panel_out,
                out_stride,
            )  # fmt: skip
        else:
            multiply_last_panel(
                rows, panel_x, x_stride, panel_weights, kind, depth, panel_start, start_stride, panel_out,
                out_stride, width - column,
            )  # fmt: skip
        item = take_next(member, phase, num_items)
    wait(member, phase, num_items)


@numba.njit
def multiply_panel(
    num_rows: int,
    x: int,
    x_stride: int,
    weights: int,
    kind: int,
    depth: int,
    start: int,
    start_stride: int,
    out: int,
    out_stride: int,
) -> None:
    """Multiply rows by one panel, a part of the depth after the other."""
    for k in range(0, depth, DEPTH_PER_PASS):
        part, part_weights = min(DEPTH_PER_PASS, depth - k), weights + k * COLUMNS * size_of(kind)
        for row in range(0, num_rows, TILE_ROWS):
            rows = min(TILE_ROWS, num_rows - row)
            row_x = x + (row * x_stride + k) * FLOAT_BYTES
            row_start, row_out = start + row * start_stride * FLOAT_BYTES, out + row * out_stride * FLOAT_BYTES
            if kind == BFLOATS:
                multiply_bfloat_tile(
                    rows, row_x, x_stride, part_weights, part, row_start, start_stride, row_out, out_stride
                )
            elif HAS_HALVES and kind == HALVES:
                multiply_half_tile(
                    rows, row_x, x_stride, part_weights, part, row_start, start_stride, row_out, out_stride
                )
            else:
                multiply_tile(rows, row_x, x_stride, part_weights, part, row_start, start_stride, row_out, out_stride)
        start, start_stride = out, out_stride


@numba.njit
def multiply_last_panel(
    num_rows: int,
    x: int,
    x_stride: int,
    weights: int,
    kind: int,
    depth: int,
    start: int,
    start_stride: int,
    out: int,
    out_stride: int,
    width: int,
) -> None:
    """Multiply rows by a panel of which only `width` columns lie in `out`."""
    whole = np.zeros((num_rows, COLUMNS), np.float32)
    starts = floats_at(start, (num_rows - 1) * start_stride + width)
    outs = floats_at(out, (num_rows - 1) * out_stride + width)
    for row in range(num_rows):
        for column in range(width):
            whole[row, column] = starts[row * start_stride + column]
    address = whole.ctypes.data
    multiply_panel(num_rows, x, x_stride, weights, kind, depth, address, COLUMNS, address, COLUMNS)
    for row in range(num_rows):
        for column in range(width):
            outs[row * out_stride + column] = whole[row, column]


@numba.njit
def normalize(
    member: Any,
    phase: int,
    num_rows: int,
    x: int,
    x_stride: int,
    weight: int,
    width: int,
    eps: Any,
    offset: Any,
    out: int,
) -> None:
    """Normalize rows of `width` into `out`, which has no gaps; see `kernels.rms_norm`."""
    scales, lanes = floats_at(weight, width), np.empty(LANES, np.float32)
    row = take(member, phase, num_rows)
    while row < num_rows:
        source = floats_at(x + row * x_stride * FLOAT_BYTES, width)
        target = floats_at(out + row * width * FLOAT_BYTES, width)
        normalize_row(source, scales, eps, offset, lanes, target)
        row = take_next(member, phase, num_rows)
    wait(member, phase, num_rows)
