"""Workload levels: which pool of instances serves, by how many requests are in flight.

Few requests want few instances with much parallelism each, many want many with little (ScaleLLM, arXiv 2408.00008; the
threshold of 64 is the paper's). Knows counts and a given time. Does not know instances.

Invariants:
1. The level changes only when the mean over about `window_s` has left the band threshold * (1 -+ hysteresis).
2. Each switch is in `switches`, with its reason.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

REMEMBERED_SWITCHES = 50


class Level(Enum):
    """How much there is to do."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class LevelRule:
    """When to switch, and to which pool.

    Attributes:
        pools: the pool of each level.
        threshold: requests in flight from which the level is HIGH.
        hysteresis: share of the threshold by which the mean must pass it.
        window_s: time constant of the mean, in seconds; 0 takes every count as it is.
    """

    pools: dict[Level, str]
    threshold: float = 64.0
    hysteresis: float = 0.1
    window_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of the level."""

    at: float
    level: Level
    pool: str
    reason: str


@dataclass(slots=True)
class LevelTracker:
    """Follows the number of requests in flight."""

    rule: LevelRule
    level: Level = Level.LOW
    mean: float = 0.0
    seen_at: float | None = None
    num_switches: int = 0
    switches: deque[Switch] = field(default_factory=lambda: deque(maxlen=REMEMBERED_SWITCHES))

    @property
    def pool(self) -> str:
        """The pool that serves now."""
        return self.rule.pools[self.level]

    def observe(self, in_flight: int, now: float) -> Switch | None:
        """Take the number of requests in flight since the last observation; return the switch it makes, if any."""
        elapsed = 0.0 if self.seen_at is None else max(0.0, now - self.seen_at)
        self.seen_at = now
        keep = math.exp(-elapsed / self.rule.window_s) if self.rule.window_s else 0.0
        self.mean = keep * self.mean + (1.0 - keep) * in_flight
        up, down = (self.rule.threshold * (1.0 + sign * self.rule.hysteresis) for sign in (1.0, -1.0))
        if self.level is Level.LOW and self.mean >= up:
            return self._switch(Level.HIGH, f"at least {up:g}", now)
        if self.level is Level.HIGH and self.mean < down:
            return self._switch(Level.LOW, f"below {down:g}", now)
        return None

    def _switch(self, level: Level, bound: str, now: float) -> Switch:
        self.level = level
        reason = f"{self.mean:.1f} requests in flight on average over {self.rule.window_s:g} s, {bound}"
        self.num_switches += 1
        self.switches.append(Switch(now, level, self.pool, reason))
        return self.switches[-1]
