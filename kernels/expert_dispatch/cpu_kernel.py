"""Expert dispatch for CPUs: tokens are grouped by expert, so that each expert's weights are read once a step.

The pairs of token and expert are sorted by expert; each expert with tokens computes all of its rows in one call; the
answers are gathered in the tokens' order and added up in one pass.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F


def expert_dispatch_cpu(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:
    """Group by expert; see the contract in `kernels.expert_dispatch`."""
    num_tokens, num_chosen = expert_ids.shape
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(experts)).tolist()
    groups = hidden[order // num_chosen].split(counts)
    answers = torch.cat([expert(rows) for expert, rows in zip(experts, groups, strict=True) if len(rows)])
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return F.embedding_bag(places.view(num_tokens, num_chosen), answers, per_sample_weights=weights, mode="sum")
