"""Which experts each token goes to, and with what weights.

    p[t] = softmax(logits[t]);   the A experts with the largest p[t], from the largest down, and these p

With `renormalize` the weights are divided by their sum. Contract, kept by every implementation: fp32; ids are within 0
to E - 1 whatever the logits are, and a token with a NaN gets NaN weights.

Sources: arXiv 1701.06538; with renormalized weights, Mixtral (arXiv 2401.04088).
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.expert_routing.reference import expert_routing_reference

__all__ = ["ExpertRouting", "expert_routing_reference", "select"]


class ExpertRouting(Protocol):
    """Signature of the operation."""

    def __call__(
        self, logits: torch.Tensor, num_chosen: int, *, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose.

        Args:
            logits: [T, E], contiguous.
            num_chosen: A, at most E.
            renormalize: whether a token's weights sum to 1.

        Returns:
            Weights [T, A] fp32 and expert ids [T, A] int64.
        """
        ...


def select(device: torch.device) -> ExpertRouting:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("expert_routing").expert_routing_triton
    return expert_routing_reference
