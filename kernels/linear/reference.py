"""A linear layer in plain torch: the truth that other implementations are tested against."""

import torch

from kernels.linear import Norm
from kernels.rms_norm.reference import rms_norm_reference


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, K] to [T, N]; see the contract in `kernels.linear`."""
    rows = x if norm is None else rms_norm_reference(x, *norm)
    return torch.nn.functional.linear(rows, weight, bias)
