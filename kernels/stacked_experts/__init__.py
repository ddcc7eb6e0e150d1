"""A feed-forward of many experts whose weights are stacked: each token goes through a few, and their answers add up.

    out[t] = sum_a weights[t, a] * down[e] activate(gate_up[e] hidden[t]),   e = expert_ids[t, a]

`kernels.expert_dispatch` does the same for experts that are functions; here they are two tensors, so that one launch
computes a projection of all of them. Contract, kept by every implementation: sums in fp32, a token's answers are added
in the order of a; a row's answer depends on that row alone.

Sources: arXiv 1701.06538, arXiv 2401.04088; products grouped by expert, MegaBlocks (arXiv 2211.15841).
"""

from collections.abc import Callable
from typing import Protocol

import torch

from kernels import choice
from kernels.stacked_experts.reference import stacked_experts_reference

__all__ = ["Activation", "StackedExperts", "select", "stacked_experts_reference"]

Activation = Callable[[torch.Tensor], torch.Tensor]


class StackedExperts(Protocol):
    """Signature of the operation."""

    def __call__(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        activate: Activation,
        *,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute.

        Args:
            hidden: [T, C], contiguous.
            expert_ids: [T, A] int64, contiguous; E stands for nobody, whose answer is 0.
            weights: [T, A], contiguous.
            gate_up: [E, 2 F, C], contiguous.
            down: [E, C, F], contiguous.
            activate: maps rows [n, 2 F] to [n, F], each row alone.
            gate_up_bias: [E, 2 F], contiguous, or None.
            down_bias: [E, C], contiguous, or None.

        Returns:
            [T, C] of hidden's dtype.
        """
        ...


def select(device: torch.device) -> StackedExperts:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("stacked_experts").stacked_experts_triton
    return stacked_experts_reference
