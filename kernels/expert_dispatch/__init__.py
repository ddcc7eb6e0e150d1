"""Send each token to its chosen experts and add up their answers.

    out[t] = sum_a weights[t, a] * experts[expert_ids[t, a]](hidden[t]),   a = 0 .. A - 1

An expert is a function from rows to rows, [n, C] to [n, C], that treats each row alone; what it is made of (plain,
packed or quantized projections) is its own affair. A token's answers are added in the order of a, so that its result
does not depend on which other tokens chose the same experts, but for the last bits of a matrix product.

Source: sparsely-gated mixture of experts (arXiv 1701.06538), in the top-k form of Mixtral (arXiv 2401.04088).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from kernels import choice
from kernels.expert_dispatch.reference import expert_dispatch_reference

__all__ = ["ExpertDispatch", "expert_dispatch_reference", "select"]


class ExpertDispatch(Protocol):
    """Signature of the operation."""

    def __call__(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> torch.Tensor:
        """Dispatch and combine.

        Args:
            hidden: [T, C].
            expert_ids: [T, A] int64, an expert at most once for each token.
            weights: [T, A].
            experts: E functions.

        Returns:
            [T, C].
        """
        ...


def select(device: torch.device) -> ExpertDispatch:
    """Return the implementation for tensors on `device`."""
    return (
        choice.cpu_kernel("expert_dispatch").expert_dispatch_cpu if device.type == "cpu" else expert_dispatch_reference
    )
