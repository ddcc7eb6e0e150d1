"""Gated activations of one row, for kernels that have it at hand.

Knows the formulas. Does not know threads. Both take x * sigmoid(s): for silu s is x itself, and for the tanh form of
gelu s = 2 sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh(u)) / 2 = sigmoid(2 u).
"""

from typing import Any

import numba
import numpy as np

from kernels.cpu_math import exp32

GELU_SCALE, GELU_CUBE, ONE = np.float32(1.5957691216057308), np.float32(0.044715), np.float32(1.0)
SILU, GELU_TANH = 0, 1
KINDS = {"silu": SILU, "gelu_pytorch_tanh": GELU_TANH}


@numba.njit(error_model="numpy")  # without fast math, which rounds otherwise in another kernel or at another place
def activate_row(kind: int, row: Any, out: Any) -> None:
    """Write activation(row[:F]) * row[F:] to `out`, [F]; `kind` is one of `KINDS`.

    Each value is the same whatever calls this and wherever it stands, so that a rank's part is the whole's.
    """
    width = out.shape[0]
    gate, up = row[:width], row[width:]
    if kind == SILU:
        for f in range(width):
            out[f] = gate[f] / (ONE + exp32(-gate[f])) * up[f]
    else:
        for f in range(width):
            v = gate[f]
            out[f] = v / (ONE + exp32(-GELU_SCALE * (v + GELU_CUBE * v * v * v))) * up[f]
