"""Expert routing in plain torch: the truth that other implementations are tested against."""

import torch


def expert_routing_reference(
    logits: torch.Tensor, num_chosen: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose; see the contract in `kernels.expert_routing`."""
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    weights, expert_ids = probabilities.topk(num_chosen, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, expert_ids
