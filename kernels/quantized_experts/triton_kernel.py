"""Launching quantized experts: pairs as `stacked_experts` sorts and combines them, products as `quantized_linear` does.

Knows the order of launches. Nothing here waits for the GPU.
"""

from typing import TYPE_CHECKING

import torch

from kernels.quantized_linear.triton_kernel import TRITON_LINEARS
from kernels.quantized_linear.weights import Weight
from kernels.stacked_experts.triton_kernel import combine, group_pairs

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
    if not hidden.numel():
        return torch.empty_like(hidden)
    multiply, num_experts = TRITON_LINEARS[scheme], len(gate_up.scales)
    grouped = group_pairs(expert_ids, num_experts)
    inner = activate(multiply(hidden, gate_up, gate_up_bias, grouped))
    answers = multiply(inner, down, down_bias, grouped.back())
    return combine(answers, expert_ids, weights, num_experts)
