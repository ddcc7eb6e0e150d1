"""Gated feed-forward blocks of 8-bit integers for CPUs, compiled by numba.

The inputs of both products are rounded as they come, those of the second behind the activation, in fp32.
"""

from typing import Any

import numba
import numpy as np
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_int8 import ROUNDED_BYTES
from kernels.cpu_vectors import FLOAT_BYTES, floats_at
from kernels.cpu_workers import new_counters, take, take_next, wait
from kernels.gated_activation.cpu_rows import KINDS, activate_row
from kernels.int8_linear.packing import PackedInt8Weight
from kernels.int8_linear.tiles import multiply_int8, padded, quantize, round_row, rounded_at
from kernels.linear import Norm
from kernels.linear.rows import INTEGER, ROW_TYPES, row_arguments
from kernels.linear.tiles import normalize

NUM_PHASES = 5


def int8_gated_mlp_cpu(
    x: torch.Tensor, gate_up: PackedInt8Weight, down: PackedInt8Weight, activation: str, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, C], fp32, rows without gaps, to [T, C]; see the contract in `kernels.gated_mlp`."""
    num_rows, width = x.shape
    inner = down.in_features
    out, hidden = torch.empty(num_rows, down.out_features), torch.empty(num_rows, 2 * inner)
    rounded = torch.empty(num_rows * max(padded(width), padded(inner)) * ROUNDED_BYTES, dtype=torch.uint8)
    scales = torch.empty(num_rows)
    rows, _normed = row_arguments(x, norm)
    _kernel(
        *rows,
        rounded.data_ptr(),
        scales.data_ptr(),
        *_addresses(gate_up),
        hidden.data_ptr(),
        KINDS[activation],
        inner,
        *_addresses(down),
        down.out_features,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _addresses(weight: PackedInt8Weight) -> tuple[int, int, int, int]:
    return weight.panels.data_ptr(), weight.corrections.data_ptr(), weight.scales.data_ptr(), weight.bias.data_ptr()


@numba.njit
def _activate_and_round(
    member: Any, phase: int, num_rows: int, activation: int, hidden: int, inner: int, out: int, scales: int
) -> None:
    active = np.empty(inner, np.float32)
    row = take(member, phase, num_rows)
    while row < num_rows:
        activate_row(activation, floats_at(hidden + 2 * row * inner * FLOAT_BYTES, 2 * inner), active)
        floats_at(scales, num_rows)[row] = round_row(
            active, rounded_at(out + row * padded(inner) * ROUNDED_BYTES, padded(inner))
        )
        row = take_next(member, phase, num_rows)
    wait(member, phase, num_rows)


@numba.njit(
    numba.void(*ROW_TYPES, *[INTEGER] * 16),
    cache=CACHE,
    parallel=True,
)
def _kernel(
    num_rows: int,
    width: int,
    x: int,
    x_stride: int,
    has_norm: bool,
    norm_weight: int,
    eps: Any,
    offset: Any,
    normed: int,
    normed_stride: int,
    rounded: int,
    row_scales: int,
    up_panels: int,
    up_corrections: int,
    up_scales: int,
    up_bias: int,
    hidden: int,
    activation: int,
    inner: int,
    down_panels: int,
    down_corrections: int,
    down_scales: int,
    down_bias: int,
    out_width: int,
    out: int,
    num_members: int,
):
    counters = new_counters(NUM_PHASES, num_members)
    for me in numba.prange(num_members):
        member = (counters, me, num_members)
        if has_norm:
            normalize(member, 0, num_rows, x, x_stride, norm_weight, width, eps, offset, normed)
        quantize(member, 1, num_rows, normed, normed_stride, width, rounded, row_scales)
        multiply_int8(
            member, 2, num_rows, rounded, row_scales, up_panels, up_corrections, up_scales, up_bias, width,
            2 * inner, hidden, 2 * inner,
        )  # fmt: skip
        _activate_and_round(member, 3, num_rows, activation, hidden, inner, rounded, row_scales)
        multiply_int8(
            member, 4, num_rows, rounded, row_scales, down_panels, down_corrections, down_scales, down_bias, inner,
            out_width, out, out_width,
        )  # fmt: skip
