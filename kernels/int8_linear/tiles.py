"""The phases that linear layers of 8-bit integers are made of; see `kernels.linear.tiles` and `kernels.quantize_rows`.

Knows rows, panels and their order. Does not know layers. Integers named like tensors are addresses.
"""

from typing import Any

import numba
import numpy as np

from kernels.cpu_int8 import GROUP, OFFSET, ROUNDED, ROUNDED_BYTES, STEP_BYTES, multiply_int8_tile
from kernels.cpu_math import FAST_MATH, largest_magnitude
from kernels.cpu_vectors import COLUMNS, FLOAT_BYTES, TILE_ROWS, bytes_at, floats_at
from kernels.cpu_workers import take, take_next, wait
from kernels.linear.tiles import ROWS_PER_ITEM

LARGEST, ADDED, ZERO = np.float32(127.0), np.float32(OFFSET), np.float32(0.0)


@numba.njit
def padded(depth: int) -> int:
    """Return how many numbers a quantized row has."""
    return (depth + GROUP - 1) // GROUP * GROUP


@numba.njit
def rounded_at(address: int, count: int) -> Any:
    """Return the numbers of rounded rows at an address as an array."""
    return bytes_at(address, count * ROUNDED_BYTES).view(ROUNDED)


@numba.njit(fastmath=FAST_MATH, error_model="numpy")
def round_row(row: Any, out: Any) -> Any:
    """Write a row [K] to `out`, K numbers or more, as int8 plus OFFSET; return its scale."""
    return round_row_by(row, largest_magnitude(row), out)


@numba.njit(fastmath=FAST_MATH, error_model="numpy")
def round_row_by(row: Any, largest: Any, out: Any) -> Any:
    """Do what `round_row` does for a row whose largest magnitude, here or in a part of it elsewhere, is given."""
    scale = np.float32(1.0) if largest == ZERO else largest / LARGEST
    for c in range(row.shape[0]):
        out[c] = ROUNDED(np.int32(np.rint(row[c] / scale) + ADDED))
    return scale


@numba.njit
def quantize(member: Any, phase: int, num_rows: int, x: int, x_stride: int, depth: int, out: int, scales: int) -> None:
    """Round rows of `depth` floats; see `round_row`."""
    width = padded(depth)
    row = take(member, phase, num_rows)
    while row < num_rows:
        target = rounded_at(out + row * width * ROUNDED_BYTES, width)
        floats_at(scales, num_rows)[row] = round_row(floats_at(x + row * x_stride * FLOAT_BYTES, depth), target)
        row = take_next(member, phase, num_rows)
    wait(member, phase, num_rows)


@numba.njit
def multiply_int8(
    member: Any,
    phase: int,
    num_rows: int,
    x: int,
    row_scales: int,
    panels: int,
    corrections: int,
    column_scales: int,
    bias: int,
    depth: int,
    width: int,
    out: int,
    out_stride: int,
) -> None:
    """Compute the products of all rows and n < width from a packed weight."""
    num_panels = (width + COLUMNS - 1) // COLUMNS
    num_items = num_panels * ((num_rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM)
    num_groups = padded(depth) // GROUP
    stride = num_groups * GROUP * ROUNDED_BYTES
    item = take(member, phase, num_items)
    while item < num_items:
        column, first = item % num_panels * COLUMNS, item // num_panels * ROWS_PER_ITEM
        rows = min(ROWS_PER_ITEM, num_rows - first)
        whole = np.empty((0 if column + COLUMNS <= width else rows, COLUMNS), np.float32)
        target, target_stride = out + (first * out_stride + column) * FLOAT_BYTES, out_stride
        if len(whole):
            target, target_stride = whole.ctypes.data, COLUMNS
        for row in range(0, rows, TILE_ROWS):
            multiply_int8_tile(
                min(TILE_ROWS, rows - row),
                x + (first + row) * stride,
                stride,
                panels + column // COLUMNS * num_groups * STEP_BYTES,
                num_groups,
                row_scales + (first + row) * FLOAT_BYTES,
                corrections + column * FLOAT_BYTES,
                column_scales + column * FLOAT_BYTES,
                bias + column * FLOAT_BYTES,
                target + row * target_stride * FLOAT_BYTES,
                target_stride,
            )
        for row in range(len(whole)):
            floats_at(out + ((first + row) * out_stride + column) * FLOAT_BYTES, width - column)[:] = whole[
                row, : width - column
            ]
        item = take_next(member, phase, num_items)
    wait(member, phase, num_items)
