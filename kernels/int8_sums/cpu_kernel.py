"""Sums of a part of the depth for CPUs, compiled by numba; see `kernels.int8_sums`."""

from dataclasses import dataclass
from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_int8 import ROUNDED_BYTES
from kernels.cpu_math import largest_magnitude
from kernels.cpu_vectors import FLOAT_BYTES, floats_at
from kernels.cpu_workers import new_counters, take, take_next, wait
from kernels.int8_linear.packing import PackedInt8Weight
from kernels.int8_linear.tiles import multiply_int8, padded, round_row_by, rounded_at
from kernels.linear.rows import INTEGER

NUM_PHASES = 2


@dataclass(slots=True)
class UnscaledWeight:
    """A packed weight, and what stands for scales that are not to be applied.

    Attributes:
        packed: the weight.
        ones: at least as many as there are outputs and, once used, rows.
        zeros: in the place of a bias.
    """

    packed: PackedInt8Weight
    ones: torch.Tensor
    zeros: torch.Tensor

    @classmethod
    def of(cls, packed: PackedInt8Weight) -> "UnscaledWeight":
        """Take a weight."""
        return cls(packed, torch.ones_like(packed.scales), torch.zeros_like(packed.bias))


def int8_sums_cpu(x: torch.Tensor, tops: torch.Tensor, weight: UnscaledWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """Map [T, K], fp32, rows without gaps, and [T] to sums [T, N] and row scales [T]; see `kernels.int8_sums`."""
    num_rows, depth = x.shape
    packed = weight.packed
    if num_rows > len(weight.ones):
        weight.ones = torch.ones(num_rows)
    sums, row_scales = torch.empty(num_rows, packed.out_features), torch.empty(num_rows)
    rounded = torch.empty(num_rows, padded(depth) * ROUNDED_BYTES, dtype=torch.uint8)
    _kernel(
        num_rows,
        depth,
        x.data_ptr(),
        x.stride(0),
        tops.data_ptr(),
        rounded.data_ptr(),
        row_scales.data_ptr(),
        packed.panels.data_ptr(),
        packed.corrections.data_ptr(),
        weight.ones.data_ptr(),
        weight.zeros.data_ptr(),
        packed.out_features,
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return sums, row_scales


def largest_of_rows_cpu(x: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each row of [T, K], fp32, rows without gaps; NaN where one is in it."""
    tops = torch.empty(len(x))
    _largest_kernel(len(x), x.shape[1], x.data_ptr(), x.stride(0), tops.data_ptr())
    return tops


def scale_sums_cpu(
    sums: torch.Tensor, row_scales: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Make sums [T, N] the answers, in place, with row scales [T], scales [N] and a bias [N], and return them."""
    sums_at, rows_at = sums.data_ptr(), row_scales.data_ptr()
    _scale_kernel(len(sums), sums.shape[1], sums_at, rows_at, scales.data_ptr(), bias.data_ptr())
    return sums


@numba.njit(numba.void(*[INTEGER] * 5), cache=CACHE)
def _largest_kernel(num_rows: int, depth: int, x: int, x_stride: int, tops: int):
    for row in range(num_rows):
        floats_at(tops, num_rows)[row] = largest_magnitude(floats_at(x + row * x_stride * FLOAT_BYTES, depth))


@numba.njit(numba.void(*[INTEGER] * 6), cache=CACHE)
def _scale_kernel(num_rows: int, width: int, sums: int, row_scales: int, scales: int, bias: int):
    """Multiply and add as a tile does: each step is rounded, and none is fused with the next."""
    by_column, added = floats_at(scales, width), floats_at(bias, width)
    for row in range(num_rows):
        values, by_row = floats_at(sums + row * width * FLOAT_BYTES, width), floats_at(row_scales, num_rows)[row]
        for column in range(width):
            values[column] = values[column] * by_row * by_column[column] + added[column]


@numba.njit
def _round_rows(
    member: Any, phase: int, num_rows: int, x: int, x_stride: int, depth: int, tops: int, out: int, scales: int
) -> None:
    width = padded(depth)
    row = take(member, phase, num_rows)
    while row < num_rows:
        target = rounded_at(out + row * width * ROUNDED_BYTES, width)
        floats_at(scales, num_rows)[row] = round_row_by(
            floats_at(x + row * x_stride * FLOAT_BYTES, depth), floats_at(tops, num_rows)[row], target
        )
        row = take_next(member, phase, num_rows)
    wait(member, phase, num_rows)


@numba.njit(numba.void(*[INTEGER] * 14), cache=CACHE, parallel=True)
def _kernel(
    num_rows: int,
    depth: int,
    x: int,
    x_stride: int,
    tops: int,
    rounded: int,
    row_scales: int,
    panels: int,
    corrections: int,
    ones: int,
    zeros: int,
    width: int,
    out: int,
    num_members: int,
):
    counters = new_counters(NUM_PHASES, num_members)
    for me in numba.prange(num_members):
        member = (counters, me, num_members)
        _round_rows(member, 0, num_rows, x, x_stride, depth, tops, rounded, row_scales)
        multiply_int8(member, 1, num_rows, rounded, ones, panels, corrections, ones, zeros, depth, width, out, width)
