"""What a request's options change about the logits of its next token: penalties, biases and forbidden tokens.

Knows token ids and options, as plain arrays. Does not know logits, other sequences or how tokens are drawn.

The order is: the repetition penalty, then everything that is added, forbidden tokens being minus infinity.
"""

from dataclasses import dataclass

import numpy as np

from engine.sampling_params import SamplingParams
from engine.token_counts import TokenCounts

NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)


@dataclass(slots=True, frozen=True)
class Adjustment:
    """Changes to one row.

    Attributes:
        penalised_ids: distinct tokens whose logit is divided by `penalty` where positive, else multiplied.
        penalty: the repetition penalty.
        added_ids: tokens to whose logit the value at the same place in `added` is added; they may repeat.
        added: fp32.
    """

    penalised_ids: np.ndarray
    penalty: float
    added_ids: np.ndarray
    added: np.ndarray


class LogitRules:
    """The rules of one sequence, with what they remember of its tokens."""

    def __init__(self, params: SamplingParams, stop_token_ids: frozenset[int]) -> None:
        """Prepare what does not change from token to token."""
        self._params = params
        self._counts = TokenCounts()
        self._held_off = _forbid(sorted(stop_token_ids))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ever changed."""
        params = self._params
        return not (self._counts_tokens or params.min_tokens)

    def adjust(self, token_ids: list[int], num_prompt_tokens: int) -> Adjustment:
        """Return what changes for the token that comes next after prompt and output, `token_ids`."""
        params, parts = self._params, []
        if self._counts_tokens:
            self._counts.catch_up(token_ids, num_prompt_tokens)
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            parts.append(self._count_penalties())
        if len(token_ids) - num_prompt_tokens < params.min_tokens:
            parts.append(self._held_off)
        ids, values = zip(*parts, strict=True) if parts else ((NOTHING[0],), (NOTHING[1],))
        penalised = self._counts.ids if params.repetition_penalty != 1 else NOTHING[0]
        return Adjustment(penalised, params.repetition_penalty, np.concatenate(ids), np.concatenate(values))

    @property
    def _counts_tokens(self) -> bool:
        params = self._params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def _count_penalties(self) -> tuple[np.ndarray, np.ndarray]:
        in_output = self._counts.output_counts > 0
        counts = self._counts.output_counts[in_output]
        penalties = self._params.presence_penalty + self._params.frequency_penalty * counts
        return self._counts.ids[in_output], -penalties.astype(np.float32)


def _forbid(token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(token_ids, dtype=np.int64)
    return ids, np.full(len(ids), -np.inf, dtype=np.float32)
