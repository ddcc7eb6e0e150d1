"""Expert dispatch in plain torch: the truth that other implementations are tested against."""

from collections.abc import Callable, Sequence

import torch


def expert_dispatch_reference(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:
    """Take one token and one expert at a time; see the contract in `kernels.expert_dispatch`."""
    out = torch.zeros_like(hidden)
    for token, chosen in enumerate(expert_ids.tolist()):
        for place, expert in enumerate(chosen):
            out[token] += weights[token, place] * experts[expert](hidden[token : token + 1])[0]
    return out
