"""Expert dispatch for CPUs: tokens are grouped by expert, so that each expert's weights are read once a step.

The pairs of token and expert are sorted by expert; each expert with tokens computes all of its rows in one call; the
answers go back to the pairs' order and are added up by one batched product of [1, A] and [A, C].
"""

from collections.abc import Callable, Sequence

import torch


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
    by_pair = torch.empty_like(answers)
    by_pair[order] = answers
    return torch.bmm(weights.unsqueeze(1), by_pair.view(num_tokens, num_chosen, -1)).squeeze(1)
