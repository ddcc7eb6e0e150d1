"""Experts whose weights lie in two stacks, so that one launch computes a projection of all of them.

Knows blocks of experts whose linear layers are all plain, or all quantized alike. Does not know routing or families:
`stack_experts` is a pass over a loaded model, for devices where a launch costs more than it does on a CPU.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts
from engine.quantization.quantized_linear import QuantizedLinear
from kernels import quantized_experts, stacked_experts
from kernels.quantized_linear.weights import stack, weight_of

logger = logging.getLogger(__name__)
PLAIN = "plain"


class StackedDispatch:
    """`kernels.expert_dispatch` for the experts whose weights were stacked; those it is called with are the same."""

    def __init__(self, compute: Callable[..., torch.Tensor], experts: Sequence[FeedForward], stacks: list[Any]) -> None:
        """Take the operation and, of `gate_up` and `down`, each the weights and the biases of all experts."""
        (self.gate_up, self.gate_up_bias), (self.down, self.down_bias) = stacks
        self.activate, self.compute = experts[0].activate, compute

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
    """Stack the experts of every block, where they are alike; the others are dispatched to one by one."""
    for name, module in model.named_modules():
        if not isinstance(module, MixtureOfExperts):
            continue
        dispatch = _stacked(module)
        if dispatch is None:
            logger.warning("%s: its experts' weights do not stack, and are multiplied by one expert at a time", name)
        else:
            module.dispatch = dispatch


def _stacked(module: MixtureOfExperts) -> StackedDispatch | None:
    experts = [expert for expert in module.experts if isinstance(expert, FeedForward)]
    schemes = {_scheme(linear) for expert in experts for linear in (expert.gate_up, expert.down)}
    scheme = schemes.pop()
    if schemes or scheme is None:
        return None
    make = _stack_plain if scheme == PLAIN else _stack_quantized
    stacks = [make([expert.get_submodule(name) for expert in experts]) for name in ("gate_up", "down")]
    if None in stacks:
        return None
    device = module.router.weight.device
    plain = scheme == PLAIN
    compute = stacked_experts.select(device) if plain else quantized_experts.select(device, scheme)
    return StackedDispatch(compute, experts, stacks)


def _scheme(linear: nn.Module) -> str | None:
    """Return how a layer multiplies, None where it does so in a way that no stack has."""
    if isinstance(linear, QuantizedLinear):
        return linear.scheme if linear.order is None else None
    return PLAIN if type(linear) is nn.Linear else None


def _stack_plain(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    weights = linears[0].weight.new_empty(len(linears), *linears[0].weight.shape, requires_grad=False)
    for linear, place in zip(linears, weights, strict=True):
        place.copy_(linear.weight.detach())
        linear.weight = nn.Parameter(place, requires_grad=False)  # gives the memory of its own back
    return weights, _stack_biases(linears)


def _stack_quantized(linears: Sequence[Any]) -> tuple[Any, torch.Tensor | None] | None:
    weights = stack([linear.weight for linear in linears])
    if weights is None:
        return None
    for index, linear in enumerate(linears):
        linear.weight = weight_of(weights, index)
    return weights, _stack_biases(linears)


def _stack_biases(linears: Sequence[Any]) -> torch.Tensor | None:
    return None if linears[0].bias is None else torch.stack([linear.bias.detach() for linear in linears])
