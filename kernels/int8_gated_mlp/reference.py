"""A gated feed-forward block of 8-bit integers in plain torch: the truth for other implementations."""

import torch

from kernels.gated_activation.reference import gated_activation_reference
from kernels.int8_linear.reference import int8_linear_reference
from kernels.linear import Norm
from kernels.quantized_linear.weights import Int8Weight

Int8Linear = tuple[Int8Weight, torch.Tensor | None]  # weight and bias


def int8_gated_mlp_reference(
    x: torch.Tensor, gate_up: Int8Linear, down: Int8Linear, activation: str, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, C] to [T, C]; see `kernels.int8_gated_mlp`."""
    active = gated_activation_reference(activation, int8_linear_reference(x, *gate_up, norm))
    return int8_linear_reference(active, *down)
