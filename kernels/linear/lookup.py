"""Rows of a packed weight: an embedding that shares its table with a head needs no copy of its own."""

from typing import Any

import numba
import numpy as np
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_vectors import (
    BFLOATS,
    COLUMNS,
    FLOAT_BYTES,
    HALVES,
    LANES,
    SHORT_BYTES,
    UPPER_HALF,
    bytes_at,
    floats_at,
)
from kernels.linear.packing import PackedWeight
from kernels.linear.rows import INTEGER
from kernels.linear.tiles import size_of


def lookup_cpu(row_ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Return the weight's rows, [T, K] fp32, for row_ids [T] int64 without gaps, each below N."""
    if weight.kind == HALVES:  # numba has no fp16 on CPUs
        return weight.panels[row_ids // COLUMNS, :, row_ids % COLUMNS].float()
    out = torch.empty(len(row_ids), weight.in_features)
    _kernel(row_ids.numpy(), weight.panels.data_ptr(), weight.kind, weight.in_features, out.data_ptr())
    return out


@numba.njit
def _widen(panel: int, depth: int, column: int, out: Any) -> None:
    """Write one column of a panel in bf16 to `out`, [K]; see `cpu_vectors.multiply_bfloat_tile` for its order."""
    words, bits = bytes_at(panel, depth * COLUMNS * SHORT_BYTES).view(np.uint32), out.view(np.uint32)
    for k in range(depth):
        word = words[k * LANES + column % LANES]
        bits[k] = word << np.uint32(16) if column < LANES else word & np.uint32(UPPER_HALF)


@numba.njit(numba.void(numba.types.Array(numba.int64, 1, "C"), *[INTEGER] * 4), cache=CACHE)
def _kernel(row_ids: Any, panels: int, kind: int, depth: int, out: int):
    for row in range(len(row_ids)):
        panel, column = row_ids[row] // COLUMNS, row_ids[row] % COLUMNS
        source = panels + panel * depth * COLUMNS * size_of(kind)
        target = floats_at(out + row * depth * FLOAT_BYTES, depth)
        if kind == BFLOATS:
            _widen(source, depth, column, target)
        else:
            floats = floats_at(source, depth * COLUMNS)
            for k in range(depth):
                target[k] = floats[k * COLUMNS + column]
