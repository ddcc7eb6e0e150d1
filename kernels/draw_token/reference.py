"""Choosing tokens in plain torch, by sorting: the truth that other implementations are tested against."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.draw_token import Draws, Edits

COLDEST = 1e-30  # below it no two different fp32 logits both keep a weight above 0


def draw_tokens_reference(
    logits: torch.Tensor, draws: "Draws", edits: "Edits | None" = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose; see the contract in `kernels.draw_token`."""
    if edits is not None:
        edit_logits(logits, edits)
    sums = kept_weights(logits, draws).cumsum(dim=-1)
    points = draws.point.unsqueeze(1) * sums[:, -1:]
    drawn = torch.searchsorted(sums, points, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return torch.where(draws.temperature == 0, logits.argmax(dim=-1), drawn), logits.amax(dim=-1)


def edit_logits(logits: torch.Tensor, edits: "Edits") -> None:
    """Make the changes in place."""
    rows = torch.arange(len(logits), device=logits.device).repeat_interleave(edits.starts.diff())
    values = logits[rows, edits.ids]
    penalised = torch.where(values > 0, values / edits.penalties, values * edits.penalties)
    logits[rows, edits.ids] = penalised + edits.added
    guided = (edits.guides >= 0).nonzero().squeeze(1)
    forbidden = edits.allowed[edits.guides[guided]].logical_not()
    logits[guided] = logits[guided].masked_fill(forbidden, -torch.inf)


def kept_weights(logits: torch.Tensor, draws: "Draws") -> torch.Tensor:
    """Return w [R, V] fp64, 0 where a token is not kept."""
    wide = logits.double()
    temperature = draws.temperature.clamp(min=COLDEST).unsqueeze(1)
    weights = ((wide - wide.amax(dim=-1, keepdim=True)) / temperature).exp().nan_to_num(0.0)
    sorted_weights, order = weights.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(weights.shape[1], device=weights.device)
    num_kept = torch.where(draws.top_k > 0, draws.top_k, weights.shape[1])
    top = torch.where(places < num_kept.unsqueeze(1), sorted_weights, 0.0)
    goal = draws.top_p.unsqueeze(1) * top.sum(dim=-1, keepdim=True)
    num_below = (top.cumsum(dim=-1) < goal).sum(dim=-1)
    num_kept = torch.where(draws.top_p < 1, torch.minimum(num_kept, num_below + 1), num_kept)
    num_likely = (top >= draws.min_p.unsqueeze(1)).sum(dim=-1)
    num_kept = torch.minimum(num_kept, num_likely).clamp(min=1)
    kept = torch.where(places < num_kept.unsqueeze(1), sorted_weights, 0.0)
    return torch.zeros_like(weights).scatter_(1, order, kept)
