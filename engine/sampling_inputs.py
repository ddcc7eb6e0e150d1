"""What the sequences of a step ask of the choice of their next tokens, as plain arrays.

Knows options and the tokens sequences have so far. Does not know logits, devices or how tokens are chosen.

Invariant: what goes wrong for one sequence is its own error, and leaves the others' arrays as they would be without.
"""

import logging
from dataclasses import dataclass

import numpy as np

from engine.errors import EngineError, RequestFailed
from engine.logit_rules import NOTHING, Adjustment
from engine.random_numbers import uniforms
from engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SamplingInputs:
    """Options of R rows.

    Attributes:
        edits: what is changed of logits, as `kernels.draw_token.Edits` has it; nothing where no row changes any.
        draws: temperature, top_k, top_p, min_p and random number of each row, as `kernels.draw_token.Draws` has them.
        log_rows: [L] int64, rows whose log-probabilities are wanted, with `num_top` of the likeliest tokens each.
        errors: why a sequence can have no token.
    """

    edits: tuple[np.ndarray, ...]
    draws: tuple[np.ndarray, ...]
    log_rows: np.ndarray
    num_top: list[int]
    errors: list[EngineError | None]


def collect_inputs(sequences: list[Sequence], vocab_size: int) -> SamplingInputs:
    """Ask each sequence for its rules, its guide and its random number."""
    errors: list[EngineError | None] = [None] * len(sequences)
    adjustments = _adjustments(sequences, vocab_size, errors)
    masks = _masks(sequences, vocab_size, errors)
    log_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs]
    return SamplingInputs(
        edits=_edits(adjustments, masks, (len(sequences), vocab_size)) if adjustments or masks else (),
        draws=_draws(sequences),
        log_rows=np.array(log_rows, dtype=np.int64),
        num_top=[sequences[row].params.top_logprobs for row in log_rows],
        errors=errors,
    )


def _adjustments(
    sequences: list[Sequence], vocab_size: int, errors: list[EngineError | None]
) -> list[tuple[int, Adjustment]]:
    adjustments: list[tuple[int, Adjustment]] = []
    for row, sequence in enumerate(sequences):
        try:
            if not sequence.logit_rules.is_empty:
                adjustment = sequence.logit_rules.adjust(sequence.token_ids, sequence.num_prompt_tokens)
                if adjustment.ids.max(initial=0) >= vocab_size:  # kernels do not look
                    raise IndexError(f"token {adjustment.ids.max()} of {vocab_size}")
                adjustments.append((row, adjustment))
        except Exception as error:  # a bug that one sequence meets must not end the others
            logger.exception("the logit rules of request %d failed", sequence.request_id)
            errors[row] = RequestFailed(f"the request's options could not be applied: {error!r}")
    return adjustments


def _edits(
    adjustments: list[tuple[int, Adjustment]], masks: list[tuple[int, np.ndarray]], shape: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    num_rows, vocab_size = shape
    sizes, guides = np.zeros(num_rows, dtype=np.int32), np.full(num_rows, -1, dtype=np.int32)
    for row, adjustment in adjustments:
        sizes[row] = len(adjustment.ids)
    guides[[row for row, _ in masks]] = np.arange(len(masks))
    parts = [adjustment for _, adjustment in adjustments] or [NOTHING]
    return (
        np.concatenate(([0], sizes.cumsum())).astype(np.int32),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.penalties for part in parts]),
        np.concatenate([part.added for part in parts]),
        guides,
        np.stack([mask for _, mask in masks]) if masks else np.empty((0, vocab_size), dtype=np.bool_),
    )


def _masks(
    sequences: list[Sequence], vocab_size: int, errors: list[EngineError | None]
) -> list[tuple[int, np.ndarray]]:
    masks: list[tuple[int, np.ndarray]] = []
    for row, sequence in enumerate(sequences):
        if sequence.guide is None:
            continue
        try:
            masks.append((row, sequence.guide.allowed(vocab_size, sequence.stop_token_ids)))
        except Exception as error:
            logger.exception("the guide of request %d failed", sequence.request_id)
            errors[row] = error if isinstance(error, EngineError) else RequestFailed(f"the guide failed: {error!r}")
    return masks


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
