"""What the operations view shows: the present state, and one sample a second of the last minutes.

Knows where the figures are. Does not know how they are drawn.
"""

from __future__ import annotations

import asyncio
import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gateway.observe.ledger import HOPS, STAGES

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from gateway.dispatcher import Dispatcher
    from gateway.metrics import Metrics
    from gateway.routing.levels import LevelTracker
    from gateway.safety.tenant import Tenant

SAMPLE_SECONDS = 1.0
NUM_SAMPLES = 300
REFUSED = "resource_exhausted"
PERCENTILES = 100
MAX_TENANTS = 50  # that the page shows


@dataclass(frozen=True, slots=True)
class Sample:
    """One second; totals since the start, so that rates are differences."""

    at: float
    in_flight: int
    waiting: int
    requests: float
    refused: float
    messages: int
    tokens: float
    answered: float  # requests whose first answer has come, and the seconds that they waited for it
    answer_seconds: float


class Feed:
    """Samples and tells."""

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, is_draining: Callable[[], bool]) -> None:
        """Begin with an empty history."""
        self.history: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._is_draining = is_draining
        self._began = time.time()

    async def run(self) -> None:
        """Take a sample every second, for ever."""
        while True:
            self.history.append(self.sample())
            await asyncio.sleep(SAMPLE_SECONDS)

    def sample(self) -> Sample:
        """Return the figures of now."""
        instances = self._dispatcher.instances.values()
        return Sample(
            at=time.time(),
            in_flight=sum(instance.load.in_flight for instance in instances),
            waiting=self._dispatcher.num_waiting,
            requests=_total(self._metrics.requests),
            refused=_total(self._metrics.requests, outcome=REFUSED),
            messages=self._metrics.slow.messages + sum(instance.pool.tally.messages for instance in instances),
            tokens=sum(instance.report.generated_tokens for instance in instances if instance.report is not None),
            answered=_total(self._metrics.ttft_seconds, "_count"),
            answer_seconds=_total(self._metrics.ttft_seconds, "_sum"),
        )

    def data(self) -> dict[str, Any]:
        """Return everything the page shows."""
        observation = self._dispatcher.observation
        return {
            "now": time.time(),
            "began": self._began,
            "draining": self._is_draining(),
            "instances": [instance.facts() for instance in self._dispatcher.instances.values()],
            "history": [asdict(sample) for sample in self.history],
            "ttft_ms": _summary([1000 * seconds for seconds in observation.recent_first]),
            "num_watched": len(observation.recent),
            "stages": _stages(list(observation.recent)),
            "tenants": self._tenants(),
            "num_tenants": len(self._dispatcher.guard.tenants),
            "level": level_facts(self._metrics.level()),
        }

    def _tenants(self) -> list[dict[str, Any]]:
        """Return the busiest tenants, and of those as busy the ones that have least left."""
        now = asyncio.get_running_loop().time()
        tenants = [(tenant, _left(tenant, now)) for tenant in self._dispatcher.guard.tenants.values()]
        return [
            {
                "name": tenant.config.name,
                "in_flight": tenant.num_in_flight,
                "max_concurrent": tenant.config.max_concurrent,
                "limits": [
                    {"what": limit.what, "left": max(0.0, level), "most": bucket.capacity}
                    for (limit, bucket), level in zip(tenant.buckets, levels, strict=True)
                ],
            }
            for tenant, levels in heapq.nsmallest(MAX_TENANTS, tenants, key=_rank)
        ]


def _left(tenant: Tenant, now: float) -> list[float]:
    return [bucket.level_at(now) for _, bucket in tenant.buckets]


def _rank(item: tuple[Tenant, list[float]]) -> tuple[int, float]:
    tenant, levels = item
    shares = (level / bucket.capacity for level, (_, bucket) in zip(levels, tenant.buckets, strict=True))
    return -tenant.num_in_flight, min(shares, default=1.0)


def level_facts(levels: LevelTracker | None) -> dict[str, str] | None:
    """Return the workload level with the reason of its latest switch, or None where there are no levels."""
    if levels is None:
        return None
    reason = levels.switches[-1].reason if levels.switches else "since the start"
    return {"name": levels.level.value, "pool": levels.pool, "reason": reason}


def _total(metric: Collector, suffix: str = "_total", **labels: str) -> float:
    samples = [sample for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix)]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def _stages(ledgers: list[dict[str, int]]) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "label": HOPS[stage]} | _summary([ledger[stage] / 1e6 for ledger in ledgers])
        for stage in STAGES[:-1]
    ]


def _summary(values: Iterable[float]) -> dict[str, float | None]:
    """Return mean, median and 99th percentile; None where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return {"mean": None, "p50": None, "p99": None}
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // PERCENTILES)]
    return {"mean": statistics.fmean(ordered), "p50": statistics.median_low(ordered), "p99": p99}
