"""Root-mean-square normalization of rows.

    y[t, c] = x[t, c] / sqrt(mean_c x[t, c]^2 + eps) * (offset + w[c])

`offset` is 1 for checkpoints that hold the weight minus one (Gemma), else 0. Sums in fp32 or wider.

Source: RMSNorm (arXiv 1910.07467).
"""

from typing import Protocol

import torch

from kernels.rms_norm.cpu_kernel import rms_norm_cpu
from kernels.rms_norm.reference import rms_norm_reference

__all__ = ["RMSNorm", "rms_norm_cpu", "rms_norm_reference", "select"]


class RMSNorm(Protocol):
    """Signature of the operation."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        """Normalize.

        Args:
            x: [..., C].
            weight: [C].
            eps: keeps rows of zeros finite.
            offset: added to the weight.

        Returns:
            A new contiguous tensor of `x`'s shape.
        """
        ...


def select(device: torch.device) -> RMSNorm:
    """Return the implementation for tensors on `device`."""
    return rms_norm_cpu if device.type == "cpu" else rms_norm_reference
