"""RMSNorm for CPUs, compiled by numba; one work item is one row. fp32 throughout.

torch's takes 18 us for a row of 576 and 28 us for 64 of them (2 threads); this one 9 and 17 (`scripts/bench kernels`).
"""

from typing import Any

import numba
import numpy as np
import torch

from kernels.cpu_cache import CACHE
from kernels.rms_norm.cpu_rows import LANES, normalize_row

PARALLEL_FROM = 32_768  # elements; below, waking the other threads costs more than they save


def rms_norm_cpu(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    """Normalize fp32 CPU tensors; see the contract in `kernels.rms_norm`."""
    out = torch.empty(x.shape)
    kernel = _on_all_threads if out.numel() >= PARALLEL_FROM else _on_one_thread
    width = x.shape[-1]
    rows = x.detach().contiguous().view(-1, width).numpy()
    kernel(rows, weight.detach().numpy(), np.float32(eps), np.float32(offset), out.view(-1, width).numpy())
    return out


def add_rms_norm_cpu(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    """Add and normalize fp32 CPU tensors; see the contract in `kernels.rms_norm`."""
    residual += x
    return rms_norm_cpu(residual, weight, eps, offset)


def _normalize(x: Any, weight: Any, eps: Any, offset: Any, out: Any) -> None:
    for row in numba.prange(x.shape[0]):
        normalize_row(x[row], weight, eps, offset, np.empty(LANES, np.float32), out[row])


ROWS = numba.types.Array(numba.float32, 2, "C")
SIGNATURE = numba.void(ROWS, numba.types.Array(numba.float32, 1, "C"), numba.float32, numba.float32, ROWS)
_on_one_thread = numba.njit(SIGNATURE, cache=CACHE)(_normalize)
_on_all_threads = numba.njit(SIGNATURE, cache=CACHE, parallel=True)(_normalize)
