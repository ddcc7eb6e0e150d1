"""score = pieces of the prompt that an instance has seen, from its beginning / pieces of the prompt, in [0, 1].

What an instance has seen is guessed from what was sent there: a tree of prompt pieces, kept flat by hashing each piece
together with all before it. A mark is forgotten after `TTL_SECONDS`, or when there are too many, the oldest first; what
an instance was sent before it recovered does not count, for its cache is likely empty.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate

PIECE_BYTES = 256
MAX_PIECES = 64
TTL_SECONDS = 600.0
MAX_MARKS = 200_000


def hash_pieces(prompt: bytes) -> tuple[int, ...]:
    """Return the chained hashes of a prompt's first whole pieces."""
    hashes: list[int] = []
    digest = b""
    for begin in range(0, min(len(prompt), MAX_PIECES * PIECE_BYTES) - PIECE_BYTES + 1, PIECE_BYTES):
        digest = hashlib.blake2b(digest + prompt[begin : begin + PIECE_BYTES], digest_size=8).digest()
        hashes.append(int.from_bytes(digest))
    return tuple(hashes)


@dataclass(slots=True)
class PrefixMarks:
    """Which instance has been sent which pieces, and until when that counts."""

    marks: OrderedDict[tuple[str, int], float] = field(default_factory=OrderedDict)

    def remember(self, name: str, pieces: tuple[int, ...], now: float) -> None:
        """Note that these pieces have gone to an instance."""
        for piece in pieces:
            self.marks[name, piece] = now + TTL_SECONDS
            self.marks.move_to_end((name, piece))
        while self.marks and (len(self.marks) > MAX_MARKS or next(iter(self.marks.values())) <= now):
            self.marks.popitem(last=False)

    def score(self, request: Asked, candidate: Candidate) -> float:
        """Return the score."""
        known, forgotten = 0, candidate.now
        recovered_at = candidate.endpoint.recovered_at
        if recovered_at is not None:
            forgotten = max(forgotten, recovered_at + TTL_SECONDS)
        for piece in request.prefix:
            if self.marks.get((candidate.name, piece), 0.0) <= forgotten:
                break
            known += 1
        return known / len(request.prefix) if request.prefix else 0.0
