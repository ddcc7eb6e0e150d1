"""The policy in force with what it remembers: levels, marks and turns.

Knows endpoints, loads and requests as routing sees them. Does not know connections or bytes.
"""

import random
from collections.abc import Mapping, Sequence

from gateway.endpoint import Endpoint
from gateway.loads import Load
from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate
from gateway.routing.config import RoutingConfig
from gateway.routing.filters import Filter, in_pool, no_outliers, split, untried, with_weight
from gateway.routing.levels import LevelTracker, Switch
from gateway.routing.outliers import Change, OutlierWatch
from gateway.routing.pick import pick
from gateway.routing.policy import make_policy


class Router:
    """Chooses an endpoint for each request."""

    def __init__(self, config: RoutingConfig, rng: random.Random) -> None:
        """Begin with nothing remembered."""
        self.config = config
        self.policy = make_policy(config.policy)
        self.levels = LevelTracker(config.levels.rule()) if config.levels is not None else None
        self.outliers = OutlierWatch(config.outliers) if config.outliers is not None else None
        self._rng = rng
        self._num_picks = 0
        self._filters = self._fixed_filters()

    def apply(self, config: RoutingConfig) -> None:
        """Use another configuration: what it leaves as it was, and the level, are remembered."""
        before, self.config = self.config, config
        if config.policy is not before.policy:
            self.policy = make_policy(config.policy)
        if config.levels is None or self.levels is None:
            self.levels = LevelTracker(config.levels.rule()) if config.levels is not None else None
        else:
            self.levels.rule = config.levels.rule()
        if config.outliers != before.outliers:
            self.outliers = OutlierWatch(config.outliers) if config.outliers is not None else None
        self._filters = self._fixed_filters()

    def choose(self, asked: Asked, candidates: Sequence[Candidate]) -> Endpoint | None:
        """Return the endpoint for a request among usable ones, or None where there are none."""
        filters = self._filters if self.levels is None else (*self._filters, in_pool(self.levels.pool))
        return pick(asked, candidates, self._rng, self.policy, filters)

    def placed(self, asked: Asked, name: str, load: Load, now: float) -> None:
        """Note that a request has gone to an instance."""
        self._num_picks += 1
        load.last_picked = self._num_picks
        if self.policy.marks is not None:
            self.policy.marks.remember(name, asked.prefix, now)

    def observe(self, in_flight: int, now: float) -> Switch | None:
        """Follow the workload level; return a switch, if there is one."""
        return self.levels.observe(in_flight, now) if self.levels is not None else None

    def answered(self, name: str, seconds: float, now: float) -> None:
        """Take the time to a first answer, of an instance that gave one."""
        if self.outliers is not None:
            self.outliers.answered(name, seconds, now)

    def failed(self, name: str, now: float) -> None:
        """Take a failure of an instance's own."""
        if self.outliers is not None:
            self.outliers.failed(name, now)

    def judge(self, endpoints: Mapping[str, Endpoint], now: float) -> list[Change]:
        """Leave out and take in again; return what has changed."""
        watch = self.outliers
        changes = watch.judge({name: endpoint.pool for name, endpoint in endpoints.items()}, now) if watch else []
        for name, endpoint in endpoints.items():
            was_out, endpoint.outlier = endpoint.outlier, watch.reason(name) if watch else ""
            if was_out and not endpoint.outlier:
                endpoint.recovered_at = now
        return changes

    def status(self) -> dict[str, object]:
        """Return what a person wants to see: the policy, the level and its latest switches (by the loop's clock)."""
        facts: dict[str, object] = {"policy": self.config.policy.value, "split": self.config.split}
        if self.levels is not None:
            facts |= {
                "level": self.levels.level.value,
                "pool": self.levels.pool,
                "in_flight_mean": round(self.levels.mean, 2),
                "threshold": self.levels.rule.threshold,
                "switches": [
                    {"at": round(s.at, 3), "level": s.level.value, "pool": s.pool, "reason": s.reason}
                    for s in self.levels.switches
                ],
            }
        return facts

    def _fixed_filters(self) -> tuple[Filter, ...]:
        filters: list[Filter] = [no_outliers] if self.outliers is not None else []
        if self.config.split:
            filters += [with_weight(self.config.split), untried, split(self.config.split)]
        return tuple(filters)
