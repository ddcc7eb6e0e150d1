"""When a request that has no answer yet is worth a second copy, and how many may have one.

Knows times to first answers and counts. Does not know requests or instances.

Invariant: of n requests that were sent, at most n * `max_share` have had a second copy.
"""

from collections import deque
from dataclasses import dataclass, field

from pydantic import Field

from gateway.strict import Strict

REMEMBERED = 512  # times to first answers; and requests whose share a calm time may save up for a bad one
MIN_REMEMBERED = 64  # below that nobody knows what is late
SORT_EVERY = 32  # answers between two looks at the percentile: sorting takes 40 us
PERCENTILE = 0.95


class HedgingConfig(Strict):
    """Second copies of requests whose first answer is late."""

    delay_s: float | None = Field(
        default=None, gt=0, le=600, description="seconds without an answer; absent: the 95th percentile of the last 512"
    )
    max_share: float = Field(default=0.05, gt=0, le=1, description="share of requests that may have a second copy")


@dataclass(slots=True)
class HedgePlan:
    """The delay, and what is left of the share."""

    config: HedgingConfig
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _percentile: float | None = None
    _unsorted: int = 0
    _credit: float = 0.0

    @property
    def delay(self) -> float | None:
        """Seconds to wait for a first answer; None while too few are known to say."""
        return self.config.delay_s if self.config.delay_s is not None else self._percentile

    def sent(self) -> None:
        """Count a request."""
        self._credit = min(max(1.0, REMEMBERED * self.config.max_share), self._credit + self.config.max_share)

    def answered(self, seconds: float) -> None:
        """Take the time from a copy's sending to its first answer, or to the other copy's."""
        if self.config.delay_s is not None:
            return
        self._recent.append(seconds)
        self._unsorted += 1
        if len(self._recent) >= MIN_REMEMBERED and self._unsorted >= SORT_EVERY:
            self._unsorted = 0
            self._percentile = sorted(self._recent)[int(PERCENTILE * len(self._recent))]

    def take(self) -> bool:
        """Return whether one more request may have a second copy, and count it if so."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True
