"""Stacked experts in plain torch: the truth that other implementations are tested against."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from kernels.stacked_experts import Activation


def stacked_experts_reference(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activate: "Activation",
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one expert at a time, over its tokens; see the contract in `kernels.stacked_experts`."""
    answers = torch.zeros(*expert_ids.shape, hidden.shape[1], device=hidden.device)
    for expert in range(len(gate_up)):
        rows, places = (expert_ids == expert).nonzero(as_tuple=True)
        if len(rows):
            inner_bias = None if gate_up_bias is None else gate_up_bias[expert]
            outer_bias = None if down_bias is None else down_bias[expert]
            inner = activate(F.linear(hidden[rows], gate_up[expert], inner_bias))
            answers[rows, places] = F.linear(inner, down[expert], outer_bias).float()
    return (answers * weights.float().unsqueeze(2)).sum(dim=1).to(hidden.dtype)
