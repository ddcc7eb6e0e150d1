"""A token bucket: so much per second on average, so much at once.

Knows a level and a given time. Does not know what is counted.

Invariants:
1. level <= capacity. What is taken beyond the level is a debt: it goes below zero, and nothing passes until it is paid.
2. level(t2) = min(capacity, level(t1) + rate * (t2 - t1)) where nothing is taken or given back between.
"""

from dataclasses import dataclass, field

ROUNDING = 1e-6  # of a level that is right but for the last bits


@dataclass(slots=True)
class Bucket:
    """Starts full."""

    capacity: float
    rate: float  # per second
    at: float  # when the level was last known, in seconds
    level: float = field(init=False)
    is_fresh: bool = field(init=False, default=True)  # whether nobody had used it before

    def __post_init__(self) -> None:
        self.level = self.capacity

    def wait(self, amount: float, now: float) -> float:
        """Return in how many seconds `amount` can be taken, 0 for now; infinite where it exceeds the capacity."""
        if amount > self.capacity:
            return float("inf")
        self._refill(now)
        missing = amount - self.level
        return missing / self.rate if missing > ROUNDING else 0.0

    def level_at(self, now: float) -> float:
        """Return the level, negative where there is a debt."""
        self._refill(now)
        return self.level

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, going into debt where there is not as much; a negative amount is given back."""
        self._refill(now)
        self.level = min(self.capacity, self.level - amount)

    def go_on_from(self, before: "Bucket", now: float) -> None:
        """Have what is left of one with another capacity or rate, up to this one's capacity."""
        self.level, self.at, self.is_fresh = min(self.capacity, before.level_at(now)), now, False

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + self.rate * max(0.0, now - self.at))
        self.at = max(self.at, now)
