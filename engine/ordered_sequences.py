"""Sequences kept in the order of a key.

Knows a key function. Does not know what the order is for.

A sorted list: inserting and removing move at most a few thousand pointers, there are no stale entries to skip, and the
order can be walked from either end.

Invariant: keys are unique and do not change while their sequence is inside.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

from engine.sequence import Sequence


class OrderedSequences:
    """A sorted collection of sequences."""

    def __init__(self, key: Callable[[Sequence], Any]) -> None:
        """Start empty, ordered by `key`, smallest first."""
        self._key = key
        self._items: list[Sequence] = []

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        """Walk from the smallest key on."""
        return iter(self._items)

    def __reversed__(self) -> Iterator[Sequence]:
        """Walk from the largest key down."""
        return reversed(self._items)

    def __contains__(self, sequence: Sequence) -> bool:
        """Whether the sequence is inside."""
        index = bisect_left(self._items, self._key(sequence), key=self._key)
        return index < len(self._items) and self._items[index] is sequence

    @property
    def first(self) -> Sequence:
        """The sequence with the smallest key; there must be one."""
        return self._items[0]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in."""
        insort(self._items, sequence, key=self._key)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that is inside."""
        index = bisect_left(self._items, self._key(sequence), key=self._key)
        assert self._items[index] is sequence
        del self._items[index]
