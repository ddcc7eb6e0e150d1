"""Quantized experts in plain torch: the truth that other implementations are tested against."""

from typing import TYPE_CHECKING

import torch

from kernels.quantized_linear.reference import REFERENCES
from kernels.quantized_linear.weights import Weight, weight_of

if TYPE_CHECKING:
    from kernels.stacked_experts import Activation


def quantized_experts_reference(
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
    """Take one expert at a time, over its tokens; see the contract in `kernels.quantized_experts`."""
    multiply = REFERENCES[scheme]
    answers = torch.zeros(*expert_ids.shape, hidden.shape[1], device=hidden.device)
    for expert in range(len(gate_up.scales)):
        rows, places = (expert_ids == expert).nonzero(as_tuple=True)
        if len(rows):
            inner_bias = None if gate_up_bias is None else gate_up_bias[expert]
            outer_bias = None if down_bias is None else down_bias[expert]
            inner = activate(multiply(hidden[rows], weight_of(gate_up, expert), inner_bias))
            answers[rows, places] = multiply(inner, weight_of(down, expert), outer_bias).float()
    return (answers * weights.float().unsqueeze(2)).sum(dim=1).to(hidden.dtype)
