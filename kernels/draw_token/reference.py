"""Choosing tokens in plain torch, by sorting: the truth that other implementations are tested against."""

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from kernels.draw_token import Draws

COLDEST = 1e-30  # below it no two different fp32 logits both keep a weight above 0


def draw_tokens_reference(logits: torch.Tensor, draws: "Draws") -> tuple[np.ndarray, np.ndarray]:
    """Choose; see the contract in `kernels.draw_token`."""
    token_ids = np.zeros(len(logits), dtype=np.int64)
    is_valid = logits.amax(dim=-1).isfinite().cpu().numpy()
    for row in np.flatnonzero(is_valid):
        if draws.temperature[row] == 0:
            token_ids[row] = int(logits[row].argmax())
            continue
        weights = kept_weights(logits[row], draws, row).cumsum(dim=-1)
        point = float(draws.point[row]) * float(weights[-1])
        token_ids[row] = int(torch.searchsorted(weights, point, right=True))
    return token_ids, is_valid


def kept_weights(logits: torch.Tensor, draws: "Draws", row: int) -> torch.Tensor:
    """Return w [V] fp64 of one row's logits [V], 0 where a token is not kept."""
    temperature = max(float(draws.temperature[row]), COLDEST)
    weights = ((logits.double() - logits.max().double()) / temperature).exp()
    sorted_weights, order = weights.sort(descending=True, stable=True)
    num_kept = int(draws.top_k[row]) or len(weights)
    top = sorted_weights[:num_kept]
    if draws.top_p[row] < 1:
        num_kept = int((top.cumsum(dim=-1) < float(draws.top_p[row]) * top.sum()).sum()) + 1
    num_kept = max(1, min(num_kept, int((top >= float(draws.min_p[row])).sum())))
    weights[order[num_kept:]] = 0
    return weights
