"""What the sequences of a step ask of the choice of their next tokens, as plain arrays.

Knows options and the tokens sequences have so far. Does not know logits, devices or how tokens are chosen.

Invariant: what goes wrong for one sequence is its own error, and leaves the others' arrays as they would be without.
"""

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from engine.errors import EngineError, RequestFailed
from engine.logit_rules import Adjustment
from engine.random_numbers import uniforms
from engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Edits:
    """Changes to single logits: rows and ids [n] int64, and a value [n] fp32 each."""

    rows: np.ndarray
    ids: np.ndarray
    values: np.ndarray


@dataclass(slots=True)
class SamplingInputs:
    """Options of R rows.

    Attributes:
        penalised: logits that are divided by the value where positive, else multiplied.
        added: logits that the value is added to; they may repeat.
        guided_rows: [G] int64, rows that may choose only what `allowed` [G, V] bool says.
        draws: temperature, top_k, top_p, min_p and random number of each row, as `kernels.draw_token.Draws` has them.
        log_rows: [L] int64, rows whose log-probabilities are wanted, with `num_top` of the likeliest tokens each.
        errors: why a sequence can have no token.
    """

    penalised: Edits
    added: Edits
    guided_rows: np.ndarray
    allowed: np.ndarray
    draws: tuple[np.ndarray, ...]
    log_rows: np.ndarray
    num_top: list[int]
    errors: list[EngineError | None]


def collect_inputs(sequences: list[Sequence], vocab_size: int) -> SamplingInputs:
    """Ask each sequence for its rules, its guide and its random number."""
    errors: list[EngineError | None] = [None] * len(sequences)
    adjustments = _adjustments(sequences, errors)
    guided_rows, allowed = _masks(sequences, vocab_size, errors)
    log_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs]
    return SamplingInputs(
        penalised=_edits([(row, a.penalised_ids, np.full(len(a.penalised_ids), a.penalty)) for row, a in adjustments]),
        added=_edits([(row, a.added_ids, a.added) for row, a in adjustments]),
        guided_rows=np.array(guided_rows, dtype=np.int64),
        allowed=np.stack(allowed) if allowed else np.empty((0, vocab_size), dtype=np.bool_),
        draws=_draws(sequences),
        log_rows=np.array(log_rows, dtype=np.int64),
        num_top=[sequences[row].params.top_logprobs for row in log_rows],
        errors=errors,
    )


def _adjustments(sequences: list[Sequence], errors: list[EngineError | None]) -> list[tuple[int, Adjustment]]:
    adjustments: list[tuple[int, Adjustment]] = []
    for row, sequence in enumerate(sequences):
        try:
            if not sequence.logit_rules.is_empty:
                adjustment = sequence.logit_rules.adjust(sequence.token_ids, sequence.num_prompt_tokens)
                adjustments.append((row, adjustment))
        except Exception as error:  # a bug that one sequence meets must not end the others
            logger.exception("the logit rules of request %d failed", sequence.request_id)
            errors[row] = RequestFailed(f"the request's options could not be applied: {error!r}")
    return adjustments


def _edits(parts: Many[tuple[int, np.ndarray, np.ndarray]]) -> Edits:
    if not parts:
        return Edits(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    return Edits(
        np.repeat(np.array([row for row, _, _ in parts], dtype=np.int64), [len(ids) for _, ids, _ in parts]),
        np.concatenate([ids for _, ids, _ in parts]),
        np.concatenate([values for _, _, values in parts]).astype(np.float32),
    )


def _masks(
    sequences: list[Sequence], vocab_size: int, errors: list[EngineError | None]
) -> tuple[list[int], list[np.ndarray]]:
    rows: list[int] = []
    masks: list[np.ndarray] = []
    for row, sequence in enumerate(sequences):
        if sequence.guide is None:
            continue
        try:
            masks.append(sequence.guide.allowed(vocab_size, sequence.stop_token_ids))
            rows.append(row)
        except Exception as error:
            logger.exception("the guide of request %d failed", sequence.request_id)
            errors[row] = error if isinstance(error, EngineError) else RequestFailed(f"the guide failed: {error!r}")
    return rows, masks


def _draws(sequences: list[Sequence]) -> tuple[np.ndarray, ...]:
    seeds = np.array([s.seed for s in sequences], dtype=np.uint64)
    positions = np.array([s.num_tokens for s in sequences], dtype=np.uint64)
    return (
        np.array([s.params.effective_temperature for s in sequences], dtype=np.float64),
        np.array([s.params.top_k for s in sequences], dtype=np.int64),
        np.array([s.params.top_p for s in sequences], dtype=np.float64),
        np.array([s.params.min_p for s in sequences], dtype=np.float64),
        uniforms(seeds, positions),
    )
