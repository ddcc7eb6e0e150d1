"""Single rows of one head: turning them, and storing them in 8 bits as `kernels.cache_quantization` says.

Knows rows of D fp32 numbers and D bytes. Does not know tokens, heads or slots.
"""

from typing import Any

import numba
import numpy as np
import torch

from kernels.cache_quantization import LARGEST, SMALLEST_TOP
from kernels.cpu_math import FAST_MATH, MAGNITUDE, largest_magnitude

SMALLEST = np.float32(SMALLEST_TOP)
LARGEST_INT8, LARGEST_FLOAT8 = np.float32(LARGEST[torch.int8]), np.float32(LARGEST[torch.float8_e4m3fn])
SIGN = np.int32(-0x80000000)  # of a float's bits
SHED, HALF_BELOW = np.int32(20), np.int32(0x7FFFF)  # bits of the fraction that e4m3 lacks; half of them, less one
REBIAS = np.int32((127 - 7) << 3)  # from a float's exponent to e4m3's, above 3 bits of fraction
SMALLEST_NORMAL, SUBNORMALS = np.float32(2.0**-6), np.float32(2.0**9)  # below the one, steps are 1 / the other
ONE = np.int32(1)


@numba.njit(fastmath={"contract"})
def turn(row: Any, cos: Any, sin: Any) -> None:
    """Rotate the first channels of a row in place; see `kernels.rope_kv_store`."""
    half = cos.shape[0]
    for d in range(half):
        x1, x2 = row[d], row[half + d]
        row[d] = x1 * cos[d] - x2 * sin[d]
        row[half + d] = x2 * cos[d] + x1 * sin[d]


@numba.njit
def store_quantized(row: Any, out: Any, is_float8: bool) -> Any:
    """Write a row to `out`, uint8, as int8 or e4m3; return its scale."""
    largest = LARGEST_FLOAT8 if is_float8 else LARGEST_INT8
    top = largest_magnitude(row)
    top = SMALLEST if top < SMALLEST else top  # NaN stays
    factor = largest / top
    if is_float8:
        _store_float8(row, factor, out)
    else:
        for d in range(row.shape[0]):
            out[d] = np.uint8(np.int32(np.rint(row[d] * factor)))
    return top * (np.float32(1.0) / largest)


@numba.njit(fastmath=FAST_MATH)
def _store_float8(row: Any, factor: Any, out: Any) -> None:
    """Round |row| factor, at most 448, to the nearest e4m3, halves to even."""
    scaled = row * factor
    bits = scaled.view(np.int32)
    for d in range(row.shape[0]):
        magnitude = np.int32(bits[d] & MAGNITUDE)
        normal = np.int32(((magnitude + HALF_BELOW + ((magnitude >> SHED) & ONE)) >> SHED) - REBIAS)
        small = np.int32(np.rint(abs(scaled[d]) * SUBNORMALS))
        stored = small if abs(scaled[d]) < SMALLEST_NORMAL else normal
        out[d] = np.uint8(stored | ((bits[d] & SIGN) >> np.int32(24)))
