"""From logits to one token for each sequence.

Knows logits, sampling options, and the tokens a sequence has so far. Does not know the model, blocks or text.

The order is: the rules of `engine.logit_rules`, the guide's mask, (greedy ends here), temperature, top-k, top-p, min-p,
draw. Random numbers are a function of (seed, position). Log-probabilities are those of the model before any option.

Invariants:
1. What happens to one row depends on that row and its own sequence only, failures included.
2. Rows are handled together; what is done row by row costs a few microseconds and only for rows that ask for it.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from engine.errors import EngineError, RequestFailed
from engine.log_probs import LoggedRows
from engine.logit_rules import Adjustment
from engine.random_numbers import uniforms
from engine.sequence import Sequence
from engine.top_tokens import TopTokens
from kernels.draw_token import Draws, select

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SampledTokens:
    """What each of the R sampling sequences got.

    Attributes:
        token_ids: the tokens; where there is an error, any number.
        log_probs: the token's log-probability, where the sequence asks for it.
        tops: the likeliest tokens, where the sequence asks for log-probabilities.
        errors: why a sequence has no token.
    """

    token_ids: list[int]
    log_probs: list[float | None]
    tops: list[TopTokens | None]
    errors: list[EngineError | None]

    @classmethod
    def failed(cls, error: EngineError, count: int) -> "SampledTokens":
        """Return that `count` sequences have no token."""
        return cls([0] * count, [None] * count, [None] * count, [error] * count)


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
    """Choose one token for each row of `logits` [R, V] fp32, which is changed in place."""
    errors: list[EngineError | None] = [None] * len(sequences)
    log_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs]
    logged = LoggedRows(logits[log_rows], [sequences[row].params.top_logprobs for row in log_rows])
    _apply_rules(logits, sequences, errors)
    _apply_guides(logits, sequences, errors)
    token_ids, is_valid = select(logits.device)(logits, _draws(sequences))
    for row in np.flatnonzero(~is_valid):
        errors[row] = errors[row] or _explain(logits[row])
    sampled = SampledTokens(token_ids.tolist(), [None] * len(sequences), [None] * len(sequences), errors)
    for row, log_prob, top in zip(log_rows, *logged.read(token_ids[log_rows]), strict=True):
        sampled.log_probs[row], sampled.tops[row] = log_prob, top
    return sampled


def _apply_rules(logits: torch.Tensor, sequences: list[Sequence], errors: list[EngineError | None]) -> None:
    adjustments: list[tuple[int, Adjustment]] = []
    for row, sequence in enumerate(sequences):
        try:
            if not sequence.logit_rules.is_empty:
                adjustment = sequence.logit_rules.adjust(sequence.token_ids, sequence.num_prompt_tokens)
                adjustments.append((row, adjustment))
        except Exception as error:  # a bug that one sequence meets must not end the others
            logger.exception("the logit rules of request %d failed", sequence.request_id)
            errors[row] = RequestFailed(f"the request's options could not be applied: {error!r}")
    if adjustments:
        _penalise(logits, adjustments)
        _add(logits, adjustments)


def _penalise(logits: torch.Tensor, adjustments: list[tuple[int, Adjustment]]) -> None:
    ids = np.concatenate([a.penalised_ids for _, a in adjustments])
    if not len(ids):
        return
    counts = [len(a.penalised_ids) for _, a in adjustments]
    where = torch.from_numpy(np.repeat([row for row, _ in adjustments], counts)), torch.from_numpy(ids)
    penalty = torch.from_numpy(np.repeat([a.penalty for _, a in adjustments], counts).astype(np.float32))
    values = logits[where]
    logits[where] = torch.where(values > 0, values / penalty, values * penalty)


def _add(logits: torch.Tensor, adjustments: list[tuple[int, Adjustment]]) -> None:
    ids = np.concatenate([a.added_ids for _, a in adjustments])
    if not len(ids):
        return
    rows = np.repeat([row for row, _ in adjustments], [len(a.added_ids) for _, a in adjustments])
    added = torch.from_numpy(np.concatenate([a.added for _, a in adjustments]))
    logits.index_put_((torch.from_numpy(rows), torch.from_numpy(ids)), added, accumulate=True)


def _apply_guides(logits: torch.Tensor, sequences: list[Sequence], errors: list[EngineError | None]) -> None:
    rows: list[int] = []
    masks: list[np.ndarray] = []
    for row, sequence in enumerate(sequences):
        if sequence.guide is None:
            continue
        try:
            masks.append(sequence.guide.allowed(logits.shape[1], sequence.stop_token_ids))
            rows.append(row)
        except Exception as error:
            logger.exception("the guide of request %d failed", sequence.request_id)
            errors[row] = error if isinstance(error, EngineError) else RequestFailed(f"the guide failed: {error!r}")
    if rows:
        logits[rows] = logits[rows].masked_fill(torch.from_numpy(~np.stack(masks)), -torch.inf)


def _draws(sequences: list[Sequence]) -> Draws:
    seeds = np.array([s.seed for s in sequences], dtype=np.uint64)
    positions = np.array([s.num_tokens for s in sequences], dtype=np.uint64)
    return Draws(
        temperature=np.array([s.params.effective_temperature for s in sequences], dtype=np.float64),
        top_k=np.array([s.params.top_k for s in sequences], dtype=np.int64),
        top_p=np.array([s.params.top_p for s in sequences], dtype=np.float64),
        min_p=np.array([s.params.min_p for s in sequences], dtype=np.float64),
        point=uniforms(seeds, positions),
    )


def _explain(row: torch.Tensor) -> EngineError:
    if bool((row == -torch.inf).all()):
        return RequestFailed("the request's options forbid every token")
    return RequestFailed(f"the model's logits are not finite: {int((~row.isfinite()).sum())} of {len(row)} values")
