"""What a request's options change about the logits of its next token: penalties, biases and forbidden tokens.

Knows token ids and options, as plain arrays. Does not know logits, other sequences or how tokens are drawn.

The order is: the repetition penalty, then everything that is added, forbidden tokens being minus infinity.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engine.sampling_params import SamplingParams
from engine.token_counts import TokenCounts


@dataclass(slots=True, frozen=True)
class Adjustment:
    """Changes to one row.

    Attributes:
        ids: [n] int64, distinct tokens.
        penalties: [n] fp32, which divide the token's logit where it is positive, else multiply it.
        added: [n] fp32, then added to it.
    """

    ids: np.ndarray
    penalties: np.ndarray
    added: np.ndarray


NOTHING = Adjustment(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32))


class LogitRules:
    """The rules of one sequence, with what they remember of its tokens."""

    def __init__(
        self,
        params: SamplingParams,
        stop_token_ids: frozenset[int],
        bad_sequences: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        """Prepare what does not change from token to token.

        Args:
            params: the options.
            stop_token_ids: held off until `min_tokens` are out.
            bad_sequences: runs of tokens of which the last may never come.
        """
        self._params = params
        self._counts = TokenCounts()
        self._held_off = _forbid(sorted(stop_token_ids))
        self._bias = _pairs(params.logit_bias)
        self._bad_tokens = _forbid([run[0] for run in bad_sequences if len(run) == 1])
        self._bad_runs = [run for run in bad_sequences if len(run) > 1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ever changed."""
        has_bans = bool(self._params.min_tokens or self._bad_runs or len(self._bad_tokens[0]))
        return not (self._counts_tokens or has_bans or self._params.logit_bias)

    @property
    def needs_tokens(self) -> bool:
        """Whether what changes depends on which tokens there are, and not only on how many."""
        return self._counts_tokens or bool(self._bad_runs)

    def adjust(self, token_ids: list[int], num_prompt_tokens: int) -> Adjustment:
        """Return what changes for the token that comes next after prompt and output, `token_ids`."""
        parts = [self._bias, self._bad_tokens]
        if len(token_ids) - num_prompt_tokens < self._params.min_tokens:
            parts.append(self._held_off)
        parts.append(_forbid([run[-1] for run in self._bad_runs if _ends_with(token_ids, run[:-1])]))
        if not self._counts_tokens:
            return _merged(NOTHING, parts)
        self._counts.catch_up(token_ids, num_prompt_tokens)
        return _merged(self._penalties(), parts)

    @property
    def _counts_tokens(self) -> bool:
        params = self._params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def _penalties(self) -> Adjustment:
        params, counts = self._params, self._counts.output_counts
        added = -(params.presence_penalty * (counts > 0) + params.frequency_penalty * counts).astype(np.float32)
        return Adjustment(self._counts.ids, np.full(len(counts), params.repetition_penalty, dtype=np.float32), added)


def bad_sequences(words: Iterable[str], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the runs of tokens that spell `words`: each at the beginning of a word and behind a space."""
    spellings = {tuple(encode(text)) for word in words for text in (word, " " + word.lstrip(" "))}
    return tuple(sorted(run for run in spellings if run))


def _merged(penalties: Adjustment, parts: list[tuple[np.ndarray, np.ndarray]]) -> Adjustment:
    """Return one change for each token of the penalties and of the parts, which are added and may repeat tokens."""
    part_ids, part_values = map(np.concatenate, zip(*parts, strict=True))
    if not len(part_ids):
        return penalties
    ids, places = np.unique(np.concatenate((penalties.ids, part_ids)), return_inverse=True)
    factors, added = np.ones(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.float32)
    factors[places[: len(penalties.ids)]] = penalties.penalties
    np.add.at(added, places, np.concatenate((penalties.added, part_values)))
    return Adjustment(ids, factors, added)


def _ends_with(token_ids: list[int], run: tuple[int, ...]) -> bool:
    return tuple(token_ids[-len(run) :]) == run


def _pairs(pairs: tuple[tuple[int, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    ids, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32)


def _forbid(token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(token_ids, dtype=np.int64)
    return ids, np.full(len(ids), -np.inf, dtype=np.float32)
