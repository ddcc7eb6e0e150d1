"""A gated feed-forward block in plain torch: the truth that other implementations are tested against."""

import torch

from kernels.gated_activation.reference import gated_activation_reference
from kernels.linear import Norm
from kernels.linear.reference import linear_reference

Linear = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias


def gated_mlp_reference(
    x: torch.Tensor, gate_up: Linear, down: Linear, activation: str, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, C] to [T, C]; see the contract in `kernels.gated_mlp`."""
    return linear_reference(gated_activation_reference(activation, linear_reference(x, *gate_up, norm)), *down)
