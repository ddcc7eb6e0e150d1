"""Counting how often each expert is chosen, for `engine.parallel.placement` to balance groups by.

Knows a model's mixtures of experts. Does not know prompts or files.
"""

from collections.abc import Callable, Sequence

import torch

from engine.layers.moe import MixtureOfExperts
from engine.models.decoder import Decoder
from kernels.expert_dispatch import ExpertDispatch


class CountingDispatch:
    """The operation inside, and how many tokens it has sent to each expert."""

    def __init__(self, dispatch: ExpertDispatch, num_experts: int) -> None:
        """Count for `dispatch`."""
        self.dispatch = dispatch
        self.counts = torch.zeros(num_experts, dtype=torch.int64)

    def __call__(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> torch.Tensor:
        """Map [T, C] to [T, C]; see the contract in `kernels.expert_dispatch`."""
        self.counts += expert_ids.flatten().bincount(minlength=len(self.counts)).cpu()
        return self.dispatch(hidden, expert_ids, weights, experts)


def count_loads(model: Decoder) -> dict[int, CountingDispatch]:
    """Make a loaded model count from now on; return the counters by the layer's index."""
    counters: dict[int, CountingDispatch] = {}
    for index, layer in enumerate(model.layers):
        moe = layer.get_submodule("feed_forward")
        if isinstance(moe, MixtureOfExperts):
            counters[index] = CountingDispatch(moe.dispatch, moe.moe.num_experts)
            moe.dispatch = counters[index]
    return counters
