"""Normalizations that torch does not have.

Knows one formula each. Does not know where in a model they stand.

Source: RMSNorm (arXiv 1910.07467).
"""

import torch
from torch import nn
from torch.nn import functional as F


class ZeroCentredRMSNorm(nn.RMSNorm):
    """RMSNorm whose checkpoint holds the weight minus one: x / rms(x) * (1 + w)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize the last dimension."""
        return F.rms_norm(x, self.normalized_shape, 1.0 + self.weight, self.eps)
