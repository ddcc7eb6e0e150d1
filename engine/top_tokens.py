"""The likeliest tokens at consecutive places, flat as they travel.

Knows ids and numbers. Does not know what the places belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class TopTokens:
    """`num` tokens and natural log-probabilities a place, the likeliest first."""

    num: int = 0
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def append(self, token_ids: Sequence[int], log_probs: Sequence[float]) -> None:
        """Add places at the end."""
        self.token_ids.extend(token_ids)
        self.log_probs.extend(log_probs)

    def extend(self, other: "TopTokens") -> None:
        """Add the places of `other`, with as many tokens each, at the end."""
        self.num = self.num or other.num
        self.append(other.token_ids, other.log_probs)

    def places(self, start: int, end: int | None = None) -> "TopTokens":
        """Return the places from `start` up to `end`."""
        part = slice(start * self.num, None if end is None else end * self.num)
        return TopTokens(self.num, self.token_ids[part], self.log_probs[part])
