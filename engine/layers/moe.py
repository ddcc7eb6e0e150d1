"""Mixture of experts: a router and the experts that it chooses from.

Knows what a block of experts holds. Does not know how they are chosen (`kernels.expert_routing`) or how rows reach them
(`kernels.expert_dispatch`).

Sources: Mixtral (arXiv 2401.04088); the shared expert, DeepSeekMoE (arXiv 2401.06066) in the form of Qwen2 (arXiv
2407.10671).
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from engine.layers.checkpoint import Views, linear_views, prefixed
from engine.layers.feed_forward import FeedForward
from engine.models.moe_config import MoEConfig
from kernels import expert_dispatch, expert_routing


class MixtureOfExperts(nn.Module):
    """Each token goes to the experts that the router ranks highest for it."""

    expert_class: type[FeedForward] = FeedForward
    router_name = "gate"
    router_bias = False

    def __init__(self, hidden_size: int, activation: str, moe: MoEConfig, device: torch.device) -> None:
        """Allocate the router, [E, C], and E experts of width `moe.intermediate_size`."""
        super().__init__()
        self.moe = moe
        self.router = nn.Linear(hidden_size, moe.num_experts, bias=self.router_bias)
        self.experts = nn.ModuleList(
            self.expert_class(hidden_size, moe.intermediate_size, activation) for _ in range(moe.num_experts)
        )
        self.route = expert_routing.select(device)
        self.dispatch = expert_dispatch.select(device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        logits = self.router(hidden)
        weights, expert_ids = self.route(logits, self.moe.num_experts_per_token, renormalize=self.moe.norm_topk)
        experts = cast("Sequence[Callable[[torch.Tensor], torch.Tensor]]", self.experts)
        return self.dispatch(hidden, expert_ids, weights.to(hidden.dtype), experts)

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the feed-forward layer, and our views."""
        views = linear_views(self.router, {self.router_name: self.moe.num_experts})
        for index, expert in enumerate(self.experts):
            assert isinstance(expert, FeedForward)
            views |= prefixed(f"experts.{index}", expert.weight_views())
        return views


class SharedMixtureOfExperts(MixtureOfExperts):
    """Experts, and one more that every token goes to, through a gate of its own."""

    def __init__(self, hidden_size: int, activation: str, moe: MoEConfig, device: torch.device) -> None:
        """Allocate the experts, the shared expert and its gate, [1, C]."""
        super().__init__(hidden_size, activation, moe, device)
        assert moe.shared_intermediate_size is not None
        self.shared = FeedForward(hidden_size, moe.shared_intermediate_size, activation)
        self.shared_gate = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        return super().forward(hidden).addcmul_(self.shared_gate(hidden).sigmoid_(), self.shared(hidden))

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the feed-forward layer, and our views."""
        shared = prefixed("shared_expert", self.shared.weight_views())
        return super().weight_views() | shared | linear_views(self.shared_gate, {"shared_expert_gate": 1})
