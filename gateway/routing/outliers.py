"""Which instances do far worse than the others of their pool, and for how long they are left out.

Knows times to first answers, failures and a given time. Does not know endpoints or how requests are placed.

Invariants:
1. Of a pool of n instances at most n * `max_share` are out at once.
2. Nobody is out for ever: the time doubles with each ejection in a row up to `max_out_s`, and after it only what the
   instance does from then on counts. Having been in for `max_out_s`, its ejections are forgotten.
3. An instance is judged only by `min_requests` or more of its own and beside at least one other that has as many.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from gateway.strict import Strict

MAX_REMEMBERED = 256  # requests of one instance
LOOK_SECONDS = 1.0


class OutliersConfig(Strict):
    """How much worse than the others of its pool an instance must be to be left out, and for how long."""

    window_s: float = Field(default=30.0, gt=0, le=3600, description="seconds that are looked back")
    min_requests: int = Field(
        default=20, ge=1, le=MAX_REMEMBERED, description="answers or failures to judge an instance by"
    )
    latency_factor: float = Field(default=4.0, gt=1, description="times the others' median of first answers")
    latency_excess_s: float = Field(default=0.5, ge=0, description="and at least so many seconds above it")
    error_excess: float = Field(default=0.3, gt=0, le=1, description="share of failures above the others' median")
    first_out_s: float = Field(default=10.0, gt=0, le=3600, description="seconds of the first ejection")
    max_out_s: float = Field(default=300.0, gt=0, le=86400, description="seconds of the longest")
    max_share: float = Field(default=0.5, ge=0, le=1, description="share of a pool that may be out at once")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went at an instance; without seconds it failed."""

    at: float
    seconds: float | None


@dataclass(slots=True)
class Record:
    """One instance's latest requests and ejections."""

    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED))
    num_ejections: int = 0
    out_until: float = 0.0
    reason: str = ""  # why it is out; empty while it is in

    def latency(self) -> float:
        """Return the median time to a first answer, 0 where there was none."""
        seconds = [outcome.seconds for outcome in self.outcomes if outcome.seconds is not None]
        return statistics.median(seconds) if seconds else 0.0

    def error_rate(self) -> float:
        """Return the share of failures."""
        return sum(outcome.seconds is None for outcome in self.outcomes) / len(self.outcomes)


@dataclass(frozen=True, slots=True)
class Figures:
    """What instances are compared by."""

    error_rate: float
    latency: float


@dataclass(frozen=True, slots=True)
class Change:
    """An instance that is left out from now on, with the reason, or taken in again."""

    name: str
    reason: str


class OutlierWatch:
    """Compares the instances of each pool."""

    def __init__(self, config: OutliersConfig) -> None:
        """Begin with nothing known."""
        self.config = config
        self._records: defaultdict[str, Record] = defaultdict(Record)
        self._look_at = 0.0

    def answered(self, name: str, seconds: float, now: float) -> None:
        """Take the time to a first answer."""
        self._records[name].outcomes.append(Outcome(now, seconds))

    def failed(self, name: str, now: float) -> None:
        """Take a failure that is the instance's own."""
        self._records[name].outcomes.append(Outcome(now, None))

    def reason(self, name: str) -> str:
        """Return why an instance is left out, empty where it is not."""
        return self._records[name].reason if name in self._records else ""

    def judge(self, pools: Mapping[str, str], now: float) -> list[Change]:
        """Return what changes now, looking once in `LOOK_SECONDS`; `pools` has the pool of each instance there is."""
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_SECONDS
        for name in self._records.keys() - pools.keys():
            del self._records[name]
        changes = [Change(name, "") for name, record in self._records.items() if self._comes_in(record, now)]
        for pool in sorted(set(pools.values())):
            members = [name for name, its_pool in pools.items() if its_pool == pool]
            changes += self._judge_pool(members, now)
        return changes

    def _comes_in(self, record: Record, now: float) -> bool:
        if record.reason and now >= record.out_until:
            record.reason = ""
            record.outcomes.clear()
            return True
        if not record.reason and now - record.out_until > self.config.max_out_s:
            record.num_ejections = 0
        while record.outcomes and now - record.outcomes[0].at > self.config.window_s:
            record.outcomes.popleft()
        return False

    def _judge_pool(self, members: list[str], now: float) -> list[Change]:
        known = {name: self._records[name] for name in members if name in self._records}
        room = int(len(members) * self.config.max_share) - sum(bool(record.reason) for record in known.values())
        figures = {
            name: Figures(record.error_rate(), record.latency())
            for name, record in known.items()
            if not record.reason and len(record.outcomes) >= self.config.min_requests
        }
        worst_first = sorted(figures, key=lambda name: (figures[name].error_rate, figures[name].latency), reverse=True)
        found = [Change(name, reason) for name in worst_first if (reason := self._verdict(name, figures))]
        for change in found[: max(0, room)]:
            self._eject(known[change.name], change.reason, now)
        return found[: max(0, room)]

    def _verdict(self, name: str, figures: Mapping[str, Figures]) -> str:
        """Return why an instance is an outlier, empty where it is none."""
        others = [other for its_name, other in figures.items() if its_name != name]
        if not others:
            return ""
        rule, own = self.config, figures[name]
        usual_errors = statistics.median(other.error_rate for other in others)
        if own.error_rate > usual_errors + rule.error_excess:
            return f"{own.error_rate:.0%} of its requests fail, of the others' {usual_errors:.0%}"
        usual = statistics.median(other.latency for other in others)
        if own.latency > max(usual * rule.latency_factor, usual + rule.latency_excess_s):
            return f"its first answers take {own.latency:.2f} s, the others' {usual:.2f} s"
        return ""

    def _eject(self, record: Record, reason: str, now: float) -> None:
        record.num_ejections += 1
        seconds = min(self.config.max_out_s, self.config.first_out_s * 2 ** (record.num_ejections - 1))
        record.out_until = now + seconds
        record.reason = reason
