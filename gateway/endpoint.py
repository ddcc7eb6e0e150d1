"""What is known of one instance's health, as a table of states.

Knows signals and a given time. Does not know how signals come about: probes, streams and reports are others' work.

Invariants:
1. Nothing is banned for ever: a suspect instance is probed again after a back-off with a ceiling, a dead one as soon as
   its heartbeat moves.
2. Only a READY instance whose engine is up is routed to.
"""

import math
from dataclasses import dataclass, field
from enum import Enum, auto

FIRST_BACKOFF = 0.25
MAX_BACKOFF = 10.0
FIRST_SHARE = 0.1
STARTING_PROBE_INTERVAL = 0.2
UNAVAILABLE_LIMIT = 3  # answers in a row that say so, before the instance is left alone for a while
FORGIVEN_AFTER = 30.0  # seconds of being ready, after which the back-off starts from the beginning


class Health(Enum):
    """Where an instance stands."""

    STARTING = auto()  # never answered yet
    READY = auto()
    SUSPECT = auto()  # ejected: failed just now, probed again after a back-off
    DRAINING = auto()  # finishes what it has, takes nothing new
    DEAD = auto()  # its heartbeat stands still


class Signal(Enum):
    """What changes it."""

    PROBE_OK = auto()
    FAILED = auto()  # a refused or lost connection, a failed probe, too many UNAVAILABLE
    HEARTBEAT_STOPPED = auto()
    HEARTBEAT_MOVED = auto()
    DRAIN = auto()
    RESUME = auto()


TRANSITIONS: dict[tuple[Health, Signal], Health] = {
    (Health.STARTING, Signal.PROBE_OK): Health.READY,
    (Health.STARTING, Signal.HEARTBEAT_STOPPED): Health.DEAD,
    (Health.STARTING, Signal.DRAIN): Health.DRAINING,
    (Health.READY, Signal.FAILED): Health.SUSPECT,
    (Health.READY, Signal.HEARTBEAT_STOPPED): Health.DEAD,
    (Health.READY, Signal.DRAIN): Health.DRAINING,
    (Health.SUSPECT, Signal.PROBE_OK): Health.READY,
    (Health.SUSPECT, Signal.HEARTBEAT_STOPPED): Health.DEAD,
    (Health.SUSPECT, Signal.DRAIN): Health.DRAINING,
    (Health.DRAINING, Signal.RESUME): Health.STARTING,
    (Health.DEAD, Signal.HEARTBEAT_MOVED): Health.SUSPECT,
    (Health.DEAD, Signal.DRAIN): Health.DRAINING,
}


READY = Health.READY  # by a name of its own, as in `wire.stream`


@dataclass
class Endpoint:
    """The health of one instance; a signal that its state does not know changes nothing."""

    name: str
    heartbeat_timeout: float = 3.0
    pool: str = ""  # instances with the same parallelism
    group: str = ""  # instances that get a share of the requests together
    slow_start: float = 0.0  # seconds after a recovery in which it gets less than its share
    health: Health = Health.STARTING
    engine_up: bool | None = None  # None: it does not say
    backoff: float = FIRST_BACKOFF
    probe_at: float = 0.0
    ready_at: float = 0.0
    recovered_at: float | None = None
    num_unavailable: int = 0
    outlier: str = ""  # why it is left out while others of its pool are there; see `routing.outliers`
    expected_beats: frozenset[str] = frozenset()  # models that must beat once any of the instance's does
    beats: dict[str, tuple[float, float]] = field(default_factory=dict)  # model -> value, when it last moved
    stall_timeout: float | None = None  # seconds in which an engine that has work makes a step; None: for ever
    work: tuple[float, float] = (0.0, 0.0)  # tokens so far, seconds of the latest step: each step changes them
    worked_at: float = 0.0  # when they last changed, or there was nothing to do
    has_worked: bool = False  # whether they have changed since there is something to do

    @property
    def is_usable(self) -> bool:
        """Whether new requests may go there."""
        return self.health is READY and self.engine_up is not False

    def share(self, now: float) -> float:
        """Return the part of its usual share that it is to get, in (0, 1]: less while it has just recovered."""
        if self.recovered_at is None or not self.slow_start:
            return 1.0
        return min(1.0, max(FIRST_SHARE, (now - self.recovered_at) / self.slow_start))

    def signal(self, signal: Signal, now: float) -> bool:
        """Take a signal; return whether the state changed."""
        if signal is Signal.FAILED:
            self._back_off(now)
        health = TRANSITIONS.get((self.health, signal))
        if health is None:
            return False
        was_starting = self.health is Health.STARTING
        self.health = health
        if health is Health.READY:
            self.recovered_at = None if was_starting else now
            self.ready_at = now
            self.num_unavailable = 0
        elif health is Health.SUSPECT and signal is Signal.HEARTBEAT_MOVED:
            self.probe_at = now
        return True

    def wants_probe(self, now: float) -> bool:
        """Whether it is time to ask the instance whether it is ready."""
        return self.health in {Health.STARTING, Health.SUSPECT} and now >= self.probe_at

    def unavailable(self, now: float) -> bool:
        """Count one answer of UNAVAILABLE; return whether the state changed."""
        self.num_unavailable += 1
        return self.num_unavailable >= UNAVAILABLE_LIMIT and self.signal(Signal.FAILED, now)

    def answered(self) -> None:
        """Note that a request got an answer."""
        self.num_unavailable = 0

    def report_beats(self, values: dict[str, float], now: float) -> None:
        """Take the heartbeat counters as read at `now`."""
        if values:
            for model in self.expected_beats - self.beats.keys():
                self.beats[model] = (math.nan, now)
        for model, value in values.items():
            known = self.beats.get(model)
            if known is None or known[0] != value:
                self.beats[model] = (value, now)

    def report_work(self, work: tuple[float, float], *, is_busy: bool, now: float) -> None:
        """Take figures that every step of the engine changes, and whether it has requests to make steps for."""
        if work != self.work or not is_busy:
            self.work, self.worked_at, self.has_worked = work, now, is_busy

    def check_beats(self, now: float) -> bool:
        """Judge the heartbeats; return whether the state changed."""
        if not self.beats:
            return False
        return self.signal(Signal.HEARTBEAT_STOPPED if self.standstill(now) else Signal.HEARTBEAT_MOVED, now)

    def standstill(self, now: float) -> str:
        """Return what has stood still for too long, a heartbeat that was ever seen or the engine's work; or nothing."""
        if any(now - moved_at > self.heartbeat_timeout for _, moved_at in self.beats.values()):
            return "its heartbeat stands still"
        if self.stall_timeout is None:
            return ""
        longest = max(2 * self.work[1], self.stall_timeout * (1 if self.has_worked else 2))  # the first may be a prompt
        late = now - self.worked_at > longest
        return f"its engine has work and has made no step for over {longest:g} s" if late else ""

    def forgive(self, seconds: float) -> None:
        """Discount time in which nobody looked, so that a gateway that stood still declares nobody dead."""
        self.worked_at += seconds
        self.beats = {model: (value, moved_at + seconds) for model, (value, moved_at) in self.beats.items()}

    def _back_off(self, now: float) -> None:
        if self.health is Health.SUSPECT and now < self.probe_at:
            return  # one death fails many requests: it counts once
        if self.health is Health.STARTING:
            self.probe_at = now + STARTING_PROBE_INTERVAL
            return
        if self.health is Health.READY and now - self.ready_at > FORGIVEN_AFTER:
            self.backoff = FIRST_BACKOFF
        self.probe_at = now + self.backoff
        self.backoff = min(2 * self.backoff, MAX_BACKOFF)
