"""Which sequences' time is up.

Knows deadlines and the present time, handed in. Does not know clocks, queues or what happens to the expired.

Invariant: a sequence with a deadline is inside from `add` until `remove`, and in no order but that of deadlines.
"""

from itertools import takewhile

from engine.ordered_sequences import OrderedSequences
from engine.sequence import Sequence


class Deadlines:
    """Sequences that must end by a certain time."""

    def __init__(self) -> None:
        """Start empty."""
        self._sequences = OrderedSequences(lambda sequence: (sequence.deadline, sequence.rank))

    def __len__(self) -> int:
        """Number of sequences that have a deadline."""
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence, if it has a deadline."""
        if sequence.deadline is not None:
            self._sequences.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Stop watching a sequence."""
        if sequence.deadline is not None:
            self._sequences.remove(sequence)

    def expired(self, now: float) -> list[Sequence]:
        """Return the sequences whose deadline has come, in that order; they stay inside."""
        return list(takewhile(lambda s: s.deadline is not None and s.deadline <= now, self._sequences))
