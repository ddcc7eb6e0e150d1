"""From logits to one token for each sequence.

Knows logits, sampling options, and the tokens a sequence has so far. Does not know the model, blocks or text.

The order is: penalties, held-off tokens, (greedy ends here), temperature, top-k, top-p, min-p, draw.
Random numbers are a pure function of (seed, position), so a request draws the same numbers alone, in any batch, after
preemption and on another instance. Log-probabilities are those of the model before any option is applied.

Invariant: what happens to one row depends on that row and its own sequence only.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine.sequence import Sequence

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
COLDEST = 1e-30  # below it no two different fp32 logits both keep a probability above 0
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(slots=True)
class SampledTokens:
    """One token id for each sampling sequence, and its log-probability where the sequence asks for it."""

    token_ids: list[int]
    log_probs: list[float | None]


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
    """Choose one token for each row of `logits` [R, V] fp32, which is changed in place."""
    log_probs_of = _raw_log_probs(logits, sequences)
    for row, sequence in enumerate(sequences):
        _apply_penalties(logits[row], sequence)
        _hold_off_stop_tokens(logits[row], sequence)
    token_ids = logits.argmax(dim=-1).tolist()
    for row, sequence in enumerate(sequences):
        if sequence.params.effective_temperature > 0:
            token_ids[row] = _draw(logits[row], sequence)
    return SampledTokens(token_ids, [_pick(log_probs_of[row], token_ids[row]) for row in range(len(sequences))])


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to (seed, position): SplitMix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + GOLDEN_GAMMA) + GOLDEN_GAMMA * np.uint64(position + 1)
        return float(_mix(state) >> np.uint64(11)) * 2.0**-53


def _mix(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(30))) * MIX_1
    state = (state ^ (state >> np.uint64(27))) * MIX_2
    return state ^ (state >> np.uint64(31))


def _raw_log_probs(logits: torch.Tensor, sequences: list[Sequence]) -> list[torch.Tensor | None]:
    return [logits[row].log_softmax(dim=-1) if s.params.logprobs else None for row, s in enumerate(sequences)]


def _pick(log_probs: torch.Tensor | None, token_id: int) -> float | None:
    return None if log_probs is None else float(log_probs[token_id])


def _apply_penalties(logits: torch.Tensor, sequence: Sequence) -> None:
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.token_ids).unique()
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        output = torch.tensor(sequence.token_ids[sequence.num_prompt_tokens :], dtype=torch.int64)
        seen, counts = output.unique(return_counts=True)
        logits[seen] -= params.presence_penalty + params.frequency_penalty * counts


def _hold_off_stop_tokens(logits: torch.Tensor, sequence: Sequence) -> None:
    if sequence.num_output_tokens < sequence.params.min_tokens and sequence.stop_token_ids:
        logits[list(sequence.stop_token_ids)] = float("-inf")


def _draw(logits: torch.Tensor, sequence: Sequence) -> int:
    """Draw by inverting the distribution at this sequence's random number, likeliest tokens first where cut."""
    params = sequence.params
    scaled = (logits - logits.max()) / max(params.effective_temperature, COLDEST)  # no overflow, however cold
    is_cut = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    order = None
    if is_cut:
        scaled, order = _likeliest(scaled, params.top_k)
    probs = scaled.double().softmax(dim=-1)
    if is_cut:
        probs = probs[: _num_kept(probs, params.top_p, params.min_p)]
    cumulative = probs.cumsum(dim=-1)
    point = uniform(sequence.seed, sequence.num_tokens) * cumulative[-1]
    index = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
    return index if order is None else int(order[index])


def _likeliest(scaled: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kept logits in falling order and their token ids; equal logits stand in the order of their ids."""
    values, order = scaled.sort(descending=True, stable=True)
    if 0 < top_k < len(values):
        return values[:top_k], order[:top_k]
    return values, order


def _num_kept(probs: torch.Tensor, top_p: float, min_p: float) -> int:
    """Return how many of the falling `probs` stay: the token that reaches `top_p` is the last one in."""
    num_kept = len(probs)
    if top_p < 1.0:
        num_kept = int((probs.cumsum(dim=-1) < top_p).sum()) + 1
    if min_p > 0.0:
        num_kept = min(num_kept, int((probs >= min_p * probs[0]).sum()))
    return max(1, min(num_kept, len(probs)))
