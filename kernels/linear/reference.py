"""A linear layer in plain torch: the truth that other implementations are tested against."""

import torch

from kernels.gated_activation.reference import gated_activation_reference
from kernels.linear import Norm
from kernels.rms_norm.reference import rms_norm_reference


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, K] to [T, N]; see the contract in `kernels.linear`."""
    rows = x if norm is None else rms_norm_reference(x, *norm)
    return torch.nn.functional.linear(rows, weight, bias)


def streamed_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Map [T, K] to [T, N], where asked."""
    answer = torch.nn.functional.linear(x, weight, bias)
    return answer if out is None else out.copy_(answer)


def gated_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """Map [T, K] to [T, N] by a weight [2 N, K], activated; see `kernels.gated_activation`."""
    return gated_activation_reference(activation, torch.nn.functional.linear(x, weight, bias))
