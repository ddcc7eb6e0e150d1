"""Linear layers of 8-bit integers for CPUs, compiled by numba: norm, rounding and products in one call.

us on 2 threads of a Zen 4 against torch's `_int_mm` (oneDNN) on rounded rows, [N, K] at 1 / 64 / 512 rows,
rounding included: [3072, 576] 65 / 310 / 2172 instead of
137 / 462 / 2772; [576, 1536] 40 / 162 / 1117 instead of 73 / 300 / 1497.
"""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_int8 import ROUNDED_BYTES
from kernels.cpu_workers import new_counters
from kernels.int8_linear.packing import PackedInt8Weight, pack_int8
from kernels.int8_linear.tiles import multiply_int8, padded, quantize
from kernels.linear import Norm
from kernels.linear.rows import INTEGER, ROW_TYPES, row_arguments
from kernels.linear.tiles import normalize

__all__ = ["int8_linear_cpu", "pack_int8"]
NUM_PHASES = 3


def int8_linear_cpu(x: torch.Tensor, weight: PackedInt8Weight, norm: Norm | None = None) -> torch.Tensor:
    """Map [T, K], fp32, rows without gaps, to [T, N]; see `kernels.linear` and scheme `int8` of `quantized_linear`."""
    num_rows, depth = x.shape
    out = torch.empty(num_rows, weight.out_features)
    rounded, scales = torch.empty(num_rows, padded(depth) * ROUNDED_BYTES, dtype=torch.uint8), torch.empty(num_rows)
    rows, _normed = row_arguments(x, norm)
    _kernel(
        *rows,
        rounded.data_ptr(),
        scales.data_ptr(),
        weight.panels.data_ptr(),
        weight.corrections.data_ptr(),
        weight.scales.data_ptr(),
        weight.bias.data_ptr(),
        weight.out_features,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@numba.njit(
    numba.void(*ROW_TYPES, *[INTEGER] * 9),
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
    rounded: int,
    row_scales: int,
    panels: int,
    corrections: int,
    column_scales: int,
    bias: int,
    width: int,
    out: int,
    num_members: int,
):
    counters = new_counters(NUM_PHASES, num_members)
    for me in numba.prange(num_members):
        member = (counters, me, num_members)
        if has_norm:
            normalize(member, 0, num_rows, x, x_stride, norm_weight, depth, eps, offset, normed)
        quantize(member, 1, num_rows, normed, normed_stride, depth, rounded, row_scales)
        multiply_int8(
            member, 2, num_rows, rounded, row_scales, panels, corrections, column_scales, bias, depth, width, out, width
        )
