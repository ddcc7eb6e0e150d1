"""Gated activations for CPUs, compiled by numba; one work item is one row. fp32 throughout.

Both take x * sigmoid(s): for silu s is x itself, and for the tanh form of gelu s = 2 sqrt(2 / pi) (x + 0.044715 x^3),
since (1 + tanh(u)) / 2 = sigmoid(2 u).
"""

from typing import Any

import numba
import numpy as np
import torch

from kernels.cpu_math import FAST_MATH, exp32

PARALLEL_FROM = 8_192  # elements; below, waking the other threads costs more than they save
GELU_SCALE, GELU_CUBE = np.float32(1.5957691216057308), np.float32(0.044715)
ONE = np.float32(1.0)


def gated_activation_cpu(activation: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Activate and multiply on fp32 CPU tensors; see the contract in `kernels.gated_activation`."""
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
    on_one, on_all = KERNELS[activation]
    kernel = on_all if out.numel() >= PARALLEL_FROM else on_one
    kernel(gate_up.detach().numpy(), out.numpy())
    return out


def _silu(x: Any, out: Any) -> None:
    width = out.shape[1]
    for row in numba.prange(out.shape[0]):
        gate, up, answer = x[row, :width], x[row, width:], out[row]
        for f in range(width):
            answer[f] = gate[f] / (ONE + exp32(-gate[f])) * up[f]


def _gelu_tanh(x: Any, out: Any) -> None:
    width = out.shape[1]
    for row in numba.prange(out.shape[0]):
        gate, up, answer = x[row, :width], x[row, width:], out[row]
        for f in range(width):
            v = gate[f]
            answer[f] = v / (ONE + exp32(-GELU_SCALE * (v + GELU_CUBE * v * v * v))) * up[f]


ROWS = numba.types.Array(numba.float32, 2, "C")
SIGNATURE = numba.void(ROWS, ROWS)
KERNELS = {
    name: (
        numba.njit(SIGNATURE, fastmath=FAST_MATH, error_model="numpy", cache=True)(kernel),
        numba.njit(SIGNATURE, fastmath=FAST_MATH, error_model="numpy", cache=True, parallel=True)(kernel),
    )
    for name, kernel in (("silu", _silu), ("gelu_pytorch_tanh", _gelu_tanh))
}
