"""Linear layers for CPUs, compiled by numba around tiles of hand-written vector code. fp32 throughout.

Against oneDNN's packed weights, 2 threads of a Zen 4 (us, [N, K] at 1 / 64 / 512 rows): [3072, 576] 208 / 1132 / 8628
instead of 299 / 1151 / 8696; [576, 1536] 88 / 526 / 4067 instead of 198 / 754 / 4366; the norm comes with it.
"""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_workers import new_counters
from kernels.linear import Norm
from kernels.linear.lookup import lookup_cpu
from kernels.linear.packing import PackedWeight, pack
from kernels.linear.rows import INTEGER, ROW_TYPES, row_arguments
from kernels.linear.tiles import multiply, normalize

__all__ = ["linear_cpu", "lookup_cpu", "pack"]
NUM_PHASES = 2


def linear_cpu(x: torch.Tensor, weight: PackedWeight, norm: Norm | None = None) -> torch.Tensor:
    """Map [T, K] to [T, N], fp32, rows without gaps; see the contract in `kernels.linear`."""
    out = torch.empty(len(x), weight.out_features)
    rows, _normed = row_arguments(x, norm)
    _kernel(
        *rows,
        weight.panels.data_ptr(),
        weight.kind,
        weight.out_features,
        weight.bias.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@numba.njit(
    numba.void(*ROW_TYPES, *[INTEGER] * 6),
    cache=CACHE,
    parallel=True,
)
def _kernel(
    num_rows: int,
    depth: int,
    x: int,
    x_stride: int,
    has_norm: bool,
    norm_weight: int,
    eps: Any,
    offset: Any,
    normed: int,
    normed_stride: int,
    panels: int,
    kind: int,
    width: int,
    bias: int,
    out: int,
    num_members: int,
):
    counters = new_counters(NUM_PHASES, num_members)
    for me in numba.prange(num_members):
        member = (counters, me, num_members)
        if has_norm:
            normalize(member, 0, num_rows, x, x_stride, norm_weight, depth, eps, offset, normed)
        multiply(member, 1, num_rows, normed, normed_stride, panels, kind, depth, width, bias, 0, out, width)
