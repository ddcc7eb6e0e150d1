"""How much each instance has to do: what is in flight from here, exactly, and what it reports beyond that, aged.

Knows counts and a given time. Does not know how reports are fetched.

load = in flight here + prompts to compute
     + (waiting + running as reported - in flight here at that time, at least 0) * discount(age)

"Here" is this gateway with all its workers, save that prompts are counted by each worker for itself.
"""

from collections import deque
from dataclasses import dataclass, field

from gateway.workers.table import Row

FRESH_SECONDS = 1.0  # a report up to this age counts in full; an older one in inverse proportion to its age
REMEMBERED_REPORTS = 5  # the engine's own figures lag, so what was in flight over the last few reports is subtracted


@dataclass(frozen=True, slots=True)
class Report:
    """What one read of an instance's metrics said; None where it did not say."""

    waiting: float = 0.0
    running: float = 0.0
    kv_usage: float | None = None
    engine_up: bool | None = None
    generated_tokens: float = 0.0  # since the engine started
    step_seconds: float = 0.0  # of the latest step
    beats: dict[str, float] = field(default_factory=dict)

    @property
    def work(self) -> tuple[float, float]:
        """What every step of the engine changes."""
        return self.generated_tokens, self.step_seconds


@dataclass
class Load:
    """The load of one instance."""

    in_flight: int = 0
    prefill: float = 0.0  # what prompts weigh that were sent and have not been answered, in requests
    others: float = 0.0
    reported_at: float | None = None
    last_picked: int = 0
    kv_usage: float | None = None
    row: Row | None = None  # what other workers have in flight, where there are any
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED_REPORTS))

    def join(self, prefill: float = 0.0) -> None:
        """Count a request that goes there, and what its prompt weighs until it is answered."""
        self.in_flight += 1
        self.prefill += prefill
        if self.row is not None:
            self.row.set(self.in_flight)

    def leave(self, prefill: float = 0.0) -> None:
        """Count a request that is no longer there."""
        self.in_flight -= 1
        self.prefill = self.prefill - prefill if self.in_flight else 0.0
        if self.row is not None:
            self.row.set(self.in_flight)

    @property
    def in_flight_everywhere(self) -> int:
        """Requests in flight from all workers of this gateway."""
        return self.in_flight if self.row is None else self.in_flight + self.row.others()

    def report(self, report: Report, now: float) -> None:
        """Take a report, leaving out what this gateway itself has sent there."""
        self.recent.append(self.in_flight_everywhere)
        self.others = max(0.0, report.waiting + report.running - max(self.recent))
        self.kv_usage = report.kv_usage
        self.reported_at = now

    def total(self, now: float) -> float:
        """Return the load in requests."""
        here = self.prefill + (self.in_flight if self.row is None else self.in_flight_everywhere)
        return here + self.others * self.discount(now) if self.others else here

    def discount(self, now: float) -> float:
        """Return what the latest report still counts, in (0, 1]."""
        if self.reported_at is None:
            return 1.0
        return min(1.0, FRESH_SECONDS / max(now - self.reported_at, FRESH_SECONDS))
