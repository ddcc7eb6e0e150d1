"""Experts whose weights lie in two tensors, so that one launch computes a projection of all of them.

Knows blocks of experts with plain linear layers. Does not know routing or families: `stack_experts` is a pass over a
loaded model, for devices where a launch costs more than it does on a CPU.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts
from kernels import stacked_experts


class StackedDispatch:
    """`kernels.expert_dispatch` for the experts whose weights were stacked; those it is called with are the same."""

    def __init__(self, experts: Sequence[FeedForward], device: torch.device) -> None:
        """Stack the experts' weights, and leave them views of the stacks."""
        self.gate_up, self.gate_up_bias = _stack([expert.gate_up for expert in experts])
        self.down, self.down_bias = _stack([expert.down for expert in experts])
        self.activate = experts[0].activate
        self.compute = stacked_experts.select(device)

    def __call__(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> torch.Tensor:
        """Map [T, C] to [T, C]; an expert number E, which has no weights, answers 0."""
        del experts
        return self.compute(
            hidden,
            expert_ids.contiguous(),
            weights,
            self.gate_up,
            self.down,
            self.activate,
            gate_up_bias=self.gate_up_bias,
            down_bias=self.down_bias,
        )


def stack_experts(model: nn.Module) -> None:
    """Stack the experts of every block that has plain ones; quantized ones are dispatched to one by one."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            experts = [expert for expert in module.experts if isinstance(expert, FeedForward)]
            linears = [linear for expert in experts for linear in (expert.gate_up, expert.down)]
            if all(type(linear) is nn.Linear for linear in linears):
                module.dispatch = StackedDispatch(experts, module.router.weight.device)


def _stack(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    biases = None if linears[0].bias is None else torch.stack([linear.bias.detach() for linear in linears])
    weights = linears[0].weight.new_empty(len(linears), *linears[0].weight.shape, requires_grad=False)
    for linear, place in zip(linears, weights, strict=True):
        place.copy_(linear.weight.detach())
        linear.weight = nn.Parameter(place, requires_grad=False)  # gives the memory of its own back
    return weights, biases
