"""Replays arrivals through one policy and collects the time to first token of each.

Knows the gateway's router and the model of an instance. Does not know where arrivals come from.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.endpoint import Endpoint, Health
from gateway.loads import Load, Report
from gateway.routing.asked import BYTES_PER_TOKEN, Asked, prefill_weight
from gateway.routing.candidates import usable
from gateway.routing.config import RoutingConfig
from gateway.routing.policy import PolicyName
from gateway.routing.router import Router
from scripts.routing_simulation.arrivals import Arrival
from scripts.routing_simulation.instance import Job, ModelInstance

REPORT_SECONDS = 0.1


@dataclass(slots=True)
class Replay:
    """One run."""

    policy: PolicyName
    num_instances: int
    seed: int = 0
    ttft: list[float] = field(default_factory=list)

    def run(self, arrivals: Sequence[Arrival]) -> list[float]:
        """Return the seconds to the first token of every request."""
        instances = {f"i{index}": ModelInstance(f"i{index}") for index in range(self.num_instances)}
        endpoints = {name: Endpoint(name, health=Health.READY) for name in instances}
        loads = {name: Load() for name in instances}
        router = Router(RoutingConfig(policy=self.policy), random.Random(self.seed))  # noqa: S311 - ties
        steps: list[tuple[float, str]] = []
        next_report = 0.0
        for arrival in arrivals:
            self._advance(instances, loads, steps, arrival.at)
            if arrival.at >= next_report:
                _report(instances, loads, arrival.at)
                next_report = arrival.at + REPORT_SECONDS
            asked = Asked(prefix=arrival.pieces)
            chosen = router.choose(asked, usable(endpoints.values(), loads, arrival.at))
            if chosen is None:
                raise RuntimeError("no instance is usable")
            load = loads[chosen.name]
            router.placed(asked, chosen.name, load, arrival.at)
            load.in_flight += 1
            load.prefill += _weight(arrival)
            instance = instances[chosen.name]
            if not instance.running and not instance.waiting:
                heapq.heappush(steps, (arrival.at, chosen.name))
            instance.submit(arrival)
        self._advance(instances, loads, steps, float("inf"))
        return self.ttft

    def _advance(
        self, instances: dict[str, ModelInstance], loads: dict[str, Load], steps: list[tuple[float, str]], until: float
    ) -> None:
        while steps and steps[0][0] <= until:
            now, name = heapq.heappop(steps)
            seconds, first, ended = instances[name].step()
            self._note(loads[name], first, ended, now + seconds)
            if instances[name].running or instances[name].waiting:
                heapq.heappush(steps, (now + seconds, name))

    def _note(self, load: Load, first: list[Job], ended: list[Job], now: float) -> None:
        for job in first:
            self.ttft.append(now - job.arrival.at)
            load.prefill -= _weight(job.arrival)
        load.in_flight -= len(ended)


def _weight(arrival: Arrival) -> float:
    return prefill_weight(arrival.prompt_tokens * BYTES_PER_TOKEN)


def _report(instances: dict[str, ModelInstance], loads: dict[str, Load], now: float) -> None:
    for name, instance in instances.items():
        counts = Report(len(instance.waiting), len(instance.running), instance.kv_usage)
        loads[name].report(counts, now)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
