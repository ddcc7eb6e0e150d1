"""Mathematics that numba kernels share, written so that loops over it become vector code.

Knows scalars. A kernel uses these as globals of its module, never from a closure: a captured compiled function would
change the key of numba's on-disk cache in every process.
"""

from typing import Any

import numba
import numpy as np

LOG2_E, HALF, ONE = np.float32(1.4426950408889634), np.float32(0.5), np.float32(1.0)
SMALLEST_POWER, LARGEST_POWER = np.float32(-126.0), np.float32(127.0)  # of two, that a normal float holds
FLOAT_BIAS, FLOAT_SHIFT = np.int32(127), np.int32(23)  # of the exponent in its bits
C1, C2, C3 = np.float32(6.9314720e-1), np.float32(2.4022648e-1), np.float32(5.5503324e-2)
C4, C5, C6 = np.float32(9.6184373e-3), np.float32(1.3398874e-3), np.float32(1.5353362e-4)
MAGNITUDE = np.int32(0x7FFFFFFF)  # a float's bits without the sign: as integers they are ordered, NaN above infinity
FAST_MATH = {"nsz", "arcp", "contract", "afn", "reassoc"}  # infinities and NaN keep their meaning


@numba.njit(fastmath=FAST_MATH, inline="always")
def exp32(x: Any) -> Any:
    """e^x in fp32, relative error below 2e-7; clamped to 2^-126 and 2^127, NaN stays NaN.

    2^whole from the bits of a float, 2^rest on [-1/2, 1/2] from a polynomial after Moshier's Cephes. The library's exp
    is a call, and a loop with a call in it is not vectorized.
    """
    power = min(max(x * LOG2_E, SMALLEST_POWER), LARGEST_POWER)
    whole = np.floor(power + HALF)
    rest = power - whole
    fraction = ((((C6 * rest + C5) * rest + C4) * rest + C3) * rest + C2) * rest + C1
    bits = np.int32((np.int32(whole) + FLOAT_BIAS) << FLOAT_SHIFT)
    return (fraction * rest + ONE) * bits.view(np.float32)


@numba.njit
def largest_magnitude(row: Any) -> Any:
    """Return max |row|, NaN where one is in it, 0 for an empty row."""
    bits = row.view(np.int32)
    top = np.int32(0)
    for c in range(bits.shape[0]):
        top = max(top, bits[c] & MAGNITUDE)
    return np.int32(top).view(np.float32)
