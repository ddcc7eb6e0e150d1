"""Rows of a packed weight: an embedding that shares its table with a head needs no copy of its own."""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_vectors import COLUMNS, FLOAT_BYTES, floats_at
from kernels.linear.packing import PackedWeight
from kernels.linear.rows import INTEGER


def lookup_cpu(row_ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Return the weight's rows, [T, K] fp32, for row_ids [T] int64 without gaps, each below N."""
    out = torch.empty(len(row_ids), weight.in_features)
    _kernel(row_ids.numpy(), weight.panels.data_ptr(), weight.in_features, out.data_ptr())
    return out


@numba.njit(numba.void(numba.types.Array(numba.int64, 1, "C"), *[INTEGER] * 3), cache=CACHE)
def _kernel(row_ids: Any, panels: int, depth: int, out: int):
    for row in range(len(row_ids)):
        panel, column = row_ids[row] // COLUMNS, row_ids[row] % COLUMNS
        source = floats_at(panels + panel * depth * COLUMNS * FLOAT_BYTES, depth * COLUMNS)
        target = floats_at(out + row * depth * FLOAT_BYTES, depth)
        for k in range(depth):
            target[k] = source[k * COLUMNS + column]
