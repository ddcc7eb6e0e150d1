"""Who comes first: priority classes that age.

Knows arrival times and classes. Does not know sequences, queues or the present time.

A request gains one class for every `ageing_seconds` it waits: at time t its effective class is
`priority_class - (t - arrived) / ageing_seconds`. Two requests age alike, so which of them comes first never changes,
and comparing effective classes at any time is comparing `arrived + priority_class * ageing_seconds`, the rank.

Invariant: a request is overtaken only by requests that arrive within `priority_class * ageing_seconds` after it.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Ageing:
    """Ranks requests; the lower rank comes first. With 0 seconds classes are of no effect."""

    ageing_seconds: float

    def rank(self, arrived: float, priority_class: int) -> float:
        """Return the rank of a request, in seconds of the clock that `arrived` was read from."""
        return arrived + priority_class * self.ageing_seconds
