"""Which sequences belong to each open request, and which of them still wait for their prompt's blocks.

Knows sequences. Does not know scheduling or outputs.

A request for several sequences starts with its first one. The others are held until the first has computed the prompt;
then they find its full blocks in the prefix cache and compute only the rest of the last block themselves.
"""

from engine.sequence import Sequence


class SequenceGroups:
    """Open sequences by request."""

    def __init__(self) -> None:
        """Know no request."""
        self._open: dict[int, list[Sequence]] = {}
        self._held: dict[int, list[Sequence]] = {}

    def add(self, sequences: list[Sequence]) -> None:
        """Open a request; all its sequences but the first are held."""
        request_id = sequences[0].request_id
        self._open[request_id] = list(sequences)
        if len(sequences) > 1:
            self._held[request_id] = sequences[1:]

    def of(self, request_id: int) -> list[Sequence]:
        """Return the request's open sequences, in order; none where it has ended."""
        return list(self._open.get(request_id, ()))

    def take_held(self, request_id: int) -> list[Sequence]:
        """Return the sequences held so far, once."""
        return self._held.pop(request_id, [])

    def close(self, sequence: Sequence) -> int:
        """Forget a sequence that has ended, and return how many of its request are still open."""
        rest = self._open[sequence.request_id]
        rest.remove(sequence)
        if not rest:
            del self._open[sequence.request_id]
        return len(rest)
