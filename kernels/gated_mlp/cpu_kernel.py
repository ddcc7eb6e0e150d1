"""Gated feed-forward blocks for CPUs, compiled by numba: one call for the norm, both products and the activation.

fp32 throughout. The phases are shared out among threads that are woken once.
"""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_vectors import FLOAT_BYTES, floats_at
from kernels.cpu_workers import new_counters, take, take_next, wait
from kernels.gated_activation.cpu_rows import KINDS, activate_row
from kernels.linear import Norm
from kernels.linear.packing import PackedWeight
from kernels.linear.rows import INTEGER, ROW_TYPES, row_arguments
from kernels.linear.tiles import multiply, normalize

NUM_PHASES = 4


def gated_mlp_cpu(
    x: torch.Tensor, gate_up: PackedWeight, down: PackedWeight, activation: str, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, C], fp32, rows without gaps, to [T, C]; see the contract in `kernels.gated_mlp`."""
    num_rows = len(x)
    out = torch.empty(num_rows, down.out_features)
    hidden, active = torch.empty(num_rows, gate_up.out_features), torch.empty(num_rows, down.in_features)
    rows, _normed = row_arguments(x, norm)
    _kernel(
        *rows,
        gate_up.panels.data_ptr(),
        gate_up.kind,
        gate_up.bias.data_ptr(),
        hidden.data_ptr(),
        KINDS[activation],
        down.in_features,
        active.data_ptr(),
        down.panels.data_ptr(),
        down.kind,
        down.bias.data_ptr(),
        down.out_features,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@numba.njit
def _activate(member: Any, phase: int, num_rows: int, activation: int, hidden: int, inner: int, active: int) -> None:
    row = take(member, phase, num_rows)
    while row < num_rows:
        source = floats_at(hidden + 2 * row * inner * FLOAT_BYTES, 2 * inner)
        activate_row(activation, source, floats_at(active + row * inner * FLOAT_BYTES, inner))
        row = take_next(member, phase, num_rows)
    wait(member, phase, num_rows)


@numba.njit(
    numba.void(*ROW_TYPES, *[INTEGER] * 13),
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
    gate_up: int,
    gate_up_kind: int,
    gate_up_bias: int,
    hidden: int,
    activation: int,
    inner: int,
    active: int,
    down: int,
    down_kind: int,
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
        multiply(
            member, 1, num_rows, normed, normed_stride, gate_up, gate_up_kind, width, 2 * inner, gate_up_bias, 0,
            hidden, 2 * inner,
        )  # fmt: skip
        _activate(member, 2, num_rows, activation, hidden, inner, active)
        multiply(member, 3, num_rows, active, inner, down, down_kind, inner, out_width, down_bias, 0, out, out_width)
