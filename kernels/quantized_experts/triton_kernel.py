"""Launching quantized experts: in `stacked_experts`' order of launches, with the products of `quantized_linear`."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from kernels.quantized_linear.triton_kernel import TRITON_LINEARS
from kernels.quantized_linear.weights import Weight
from kernels.stacked_experts.triton_kernel import compute_experts

if TYPE_CHECKING:
    from kernels.stacked_experts import Activation


def quantized_experts_triton(
    scheme: str,
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    activate: "Activation",
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute; see the contract in `kernels.quantized_experts`."""
    first = partial(TRITON_LINEARS[scheme], weight=gate_up, bias=gate_up_bias)
    second = partial(TRITON_LINEARS[scheme], weight=down, bias=down_bias)
    return compute_experts(hidden, expert_ids, weights, len(gate_up.scales), first, activate, second)
