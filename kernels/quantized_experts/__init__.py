"""Experts whose quantized weights are stacked: `stacked_experts` with the products of `quantized_linear`.

Each projection of all experts is one weight of a scheme with one more axis in front, [E, O, C], and so are its scales
(`quantized_linear.weights.stack`). The contract is that of both operations.
"""

from functools import partial
from typing import Protocol

import torch

from kernels import choice
from kernels.quantized_experts.reference import quantized_experts_reference
from kernels.quantized_linear import Weight
from kernels.stacked_experts import Activation

__all__ = ["QuantizedExperts", "quantized_experts_reference", "select"]


class QuantizedExperts(Protocol):
    """Signature of the operation, once its scheme is chosen."""

    def __call__(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        gate_up: Weight,
        down: Weight,
        activate: Activation,
        *,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute; the arguments are those of `kernels.stacked_experts`, but for quantized `gate_up` and `down`."""
        ...


def select(device: torch.device, scheme: str) -> QuantizedExperts:
    """Return the implementation for tensors on `device` and one of `quantized_linear.SCHEMES`."""
    if device.type == "cuda":
        return partial(choice.triton_kernel("quantized_experts").quantized_experts_triton, scheme)
    return partial(quantized_experts_reference, scheme)
