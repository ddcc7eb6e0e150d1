"""RMSNorm of one row, for kernels that have it at hand.

Knows the formula. Does not know threads. Without fast math, with which LLVM adds up in another order in another kernel:
here each sum has one order, and so a rank rounds as the whole does, whichever kernel normalizes.
"""

from typing import Any

import numba
import numpy as np

LANES, ZERO, ONE = 64, np.float32(0.0), np.float32(1.0)


@numba.njit
def _sum_of_squares(row: Any, lanes: Any) -> Any:
    """Return the sum of [C], in `lanes`, [LANES], one beside the other, so that it is vector code of four chains."""
    lanes[:] = ZERO
    whole = len(row) // LANES * LANES
    for c in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += row[c + lane] * row[c + lane]
    for lane in range(LANES // 2):
        lanes[lane] += lanes[lane + LANES // 2]
    for lane in range(LANES // 4):
        lanes[lane] += lanes[lane + LANES // 4]
    total = ZERO
    for lane in range(LANES // 4):
        total += lanes[lane]
    for c in range(whole, len(row)):
        total += row[c] * row[c]
    return total


@numba.njit(error_model="numpy")
def normalize_row(row: Any, weight: Any, eps: Any, offset: Any, lanes: Any, out: Any) -> None:
    """Write the norm of a row [C] to `out`; `lanes`, [LANES], is room for it."""
    factor = ONE / np.sqrt(_sum_of_squares(row, lanes) / np.float32(len(row)) + eps)
    for c in range(len(row)):
        out[c] = row[c] * factor * (offset + weight[c])
