"""Gated activations for CPUs, compiled by numba; one work item is one row. fp32 throughout."""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.gated_activation.cpu_rows import KINDS, activate_row

PARALLEL_FROM = 8_192  # elements; below, waking the other threads costs more than they save


def gated_activation_cpu(activation: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Activate and multiply on fp32 CPU tensors; see the contract in `kernels.gated_activation`."""
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernel = _on_all_threads if out.numel() >= PARALLEL_FROM else _on_one_thread
    kernel(KINDS[activation], gate_up.detach().numpy(), out.numpy())
    return out


def _activate(kind: int, x: Any, out: Any) -> None:
    for row in numba.prange(out.shape[0]):
        activate_row(kind, x[row], out[row])


ROWS = numba.types.Array(numba.float32, 2, "C")
SIGNATURE = numba.void(numba.int64, ROWS, ROWS)
_on_one_thread = numba.njit(SIGNATURE, cache=CACHE)(_activate)
_on_all_threads = numba.njit(SIGNATURE, cache=CACHE, parallel=True)(_activate)
