"""Normalizations, on the kernel that suits the device.

Knows one formula each. Does not know where in a model they stand.
"""

import torch
from torch import nn

from kernels import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + w) over the last dimension."""

    offset = 0.0

    def __init__(self, width: int, eps: float) -> None:
        """Allocate a weight of [width]."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., width] to a new tensor of its shape."""
        return rms_norm.select(x.device)(x, self.weight, self.eps, self.offset)

    def of_sum(self, residual: torch.Tensor, answer: torch.Tensor | None) -> torch.Tensor:
        """Add the answer [T, C], if there is one, to the residual [T, C], in place; return the norm of that."""
        if answer is None:
            return self(residual)
        return rms_norm.select_adding(residual.device)(residual, answer, self.weight, self.eps, self.offset)


class ZeroCentredRMSNorm(RMSNorm):
    """RMSNorm whose checkpoint holds the weight minus one."""

    offset = 1.0
