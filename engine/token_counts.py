"""Which tokens a sequence holds, and how often each stands in its output.

Knows token ids. Does not know penalties, logits or where tokens come from.

Invariant: after `catch_up`, `ids` are the distinct tokens of prompt and output in the order of their first occurrence,
and `output_counts` how often each occurs in the output.
"""

import numpy as np


class TokenCounts:
    """Counts kept up to date at the cost of the new tokens only."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        self._num_seen = 0

    @property
    def ids(self) -> np.ndarray:
        """Distinct tokens, int64."""
        return self._ids[: len(self._slots)]

    @property
    def output_counts(self) -> np.ndarray:
        """How often each of `ids` occurs in the output, fp32."""
        return self._counts[: len(self._slots)]

    def catch_up(self, token_ids: list[int], num_prompt_tokens: int) -> None:
        """Count the tokens that `token_ids`, prompt and output, has gained since the last call."""
        for index in range(self._num_seen, len(token_ids)):
            slot = self._slot(token_ids[index])
            if index >= num_prompt_tokens:
                self._counts[slot] += 1
        self._num_seen = len(token_ids)

    def _slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[slot] = token_id
        return slot
