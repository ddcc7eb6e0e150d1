"""Root-mean-square normalization of rows, alone or of a sum that is kept.

    y[t, c] = x[t, c] / sqrt(mean_c x[t, c]^2 + eps) * (offset + w[c])

`offset` is 1 for checkpoints that hold the weight minus one (Gemma), else 0. Sums in fp32 or wider. The second form
first adds to the residual, residual[t, c] += x[t, c], rounded to its dtype, and normalizes what it then holds.

Source: RMSNorm (arXiv 1910.07467).
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.rms_norm.reference import add_rms_norm_reference, rms_norm_reference

__all__ = ["AddRMSNorm", "RMSNorm", "add_rms_norm_reference", "rms_norm_reference", "select", "select_adding"]


class RMSNorm(Protocol):
    """Signature of the operation."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        """Normalize.

        Args:
            x: [..., C], last dimension contiguous.
            weight: [C].
            eps: keeps rows of zeros finite.
            offset: added to the weight.

        Returns:
            A new contiguous tensor of `x`'s shape.
        """
        ...


class AddRMSNorm(Protocol):
    """Signature of the form with a residual."""

    def __call__(
        self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
    ) -> torch.Tensor:
        """Add and normalize.

        Args:
            residual: [T, C], contiguous; changed.
            x: [T, C], contiguous.
            weight: [C].
            eps: keeps rows of zeros finite.
            offset: added to the weight.

        Returns:
            A new [T, C].
        """
        ...


def select(device: torch.device) -> RMSNorm:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("rms_norm").rms_norm_triton
    return choice.cpu_kernel("rms_norm").rms_norm_cpu if device.type == "cpu" else rms_norm_reference


def select_adding(device: torch.device) -> AddRMSNorm:
    """Return the implementation of the form with a residual for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("rms_norm").add_rms_norm_triton
    return choice.cpu_kernel("rms_norm").add_rms_norm_cpu if device.type == "cpu" else add_rms_norm_reference
