"""From logits to one token for each sequence.

Knows logits, sampling options, and the tokens a sequence has so far. Does not know the model, blocks or text.

The order is: the rules of `engine.logit_rules`, (greedy ends here), temperature, top-k, top-p, min-p, draw. Random
numbers are a function of (seed, position). Log-probabilities are those of the model before any option is applied.

Invariants:
1. What happens to one row depends on that row and its own sequence only, failures included.
2. Rows are handled together; what is done row by row costs a few microseconds and only for rows that ask for it.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from engine.errors import EngineError, RequestFailed
from engine.logit_rules import Adjustment, LogitRules
from engine.random_numbers import uniforms
from engine.sequence import Sequence
from kernels.draw_token import Draws, select

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SampledTokens:
    """What each of the R sampling sequences got.

    Attributes:
        token_ids: the tokens; where there is an error, any number.
        log_probs: the token's log-probability, where the sequence asks for it.
        errors: why a sequence has no token.
    """

    token_ids: list[int]
    log_probs: list[float | None]
    errors: list[EngineError | None]


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
    """Choose one token for each row of `logits` [R, V] fp32, which is changed in place."""
    errors: list[EngineError | None] = [None] * len(sequences)
    logged = _LoggedRows(logits, sequences)
    _apply_rules(logits, sequences, errors)
    token_ids, is_valid = select(logits.device)(logits, _draws(sequences))
    for row in np.flatnonzero(~is_valid):
        errors[row] = errors[row] or _explain(logits[row])
    return SampledTokens(token_ids.tolist(), logged.log_probs(token_ids), errors)


class _LoggedRows:
    """The model's own log-probabilities of the rows that want them."""

    def __init__(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        self._num_rows = len(sequences)
        self._rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs]
        self._logits = logits[self._rows] if self._rows else logits[:0]

    def log_probs(self, token_ids: np.ndarray) -> list[float | None]:
        """Return the log-probability of each row's token, None for rows that do not want it."""
        found: list[float | None] = [None] * self._num_rows
        if self._rows:
            chosen = self._logits[range(len(self._rows)), token_ids[self._rows]] - self._logits.logsumexp(dim=-1)
            for row, log_prob in zip(self._rows, chosen.tolist(), strict=True):
                found[row] = log_prob
        return found


def _apply_rules(logits: torch.Tensor, sequences: list[Sequence], errors: list[EngineError | None]) -> None:
    adjustments: list[tuple[int, Adjustment]] = []
    for row, sequence in enumerate(sequences):
        try:
            rules = sequence.logit_rules = sequence.logit_rules or LogitRules(sequence.params, sequence.stop_token_ids)
            if not rules.is_empty:
                adjustments.append((row, rules.adjust(sequence.token_ids, sequence.num_prompt_tokens)))
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
