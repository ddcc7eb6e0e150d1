"""Drafts by looking up the last few tokens earlier in the same text: no model needed.

Knows token ids. Does not know options, scheduling or how drafts are checked.

Texts that repeat themselves, such as code, tables and answers that quote their prompt, go on as they did the last time
(prompt lookup decoding, A. Saxena 2023; LLMA, arXiv 2304.04487).
"""

from engine.sequence import Sequence

LONGEST_RUN = 4
SHORTEST_RUN = 2


class NgramIndex:
    """Where each run of tokens of one text was last followed by something; costs the new tokens only."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._next: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def propose(self, token_ids: list[int], num_drafts: int) -> list[int]:
        """Return what followed the longest known run of last tokens, or nothing.

        Args:
            token_ids: the text; it begins with that of the last call.
            num_drafts: how many tokens to return. A match near the end goes on into the draft itself.
        """
        self._catch_up(token_ids)
        for length in range(min(LONGEST_RUN, len(token_ids)), SHORTEST_RUN - 1, -1):
            start = self._next.get(tuple(token_ids[-length:]))
            if start is not None:
                return _copy(token_ids, start, num_drafts)
        return []

    def _catch_up(self, token_ids: list[int]) -> None:
        """Take in the runs that end before the last token: something follows them."""
        for end in range(self._num_seen, len(token_ids)):
            for length in range(SHORTEST_RUN, min(LONGEST_RUN, end) + 1):
                self._next[tuple(token_ids[end - length : end])] = end
        self._num_seen = len(token_ids)


class NgramLookup:
    """Drafts for several sequences, each from its own text."""

    def __init__(self) -> None:
        """Know no sequence."""
        self._indexes: dict[Sequence, NgramIndex] = {}

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Return a draft of at most so many tokens for each sequence; what is known of others is forgotten."""
        self._indexes = {sequence: self._indexes.get(sequence) or NgramIndex() for sequence, _ in wishes}
        return [self._indexes[sequence].propose(sequence.token_ids, number) for sequence, number in wishes]


def _copy(token_ids: list[int], start: int, number: int) -> list[int]:
    period = len(token_ids) - start
    return [token_ids[start + index % period] for index in range(number)]
