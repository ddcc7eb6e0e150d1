"""What the operations view shows: the present state, and one sample a second of the last minutes.

Knows where the figures are, those of other workers included. Does not know how they are drawn.

Invariant: totals never fall: what a worker that was started again has counted anew is added to what it had counted.
"""

from __future__ import annotations

import asyncio
import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gateway.dashboard.share import Share, Totals, read_share, share_of
from gateway.observe.ledger import HOPS, STAGES

if TYPE_CHECKING:
    from gateway.dispatcher import Dispatcher
    from gateway.metrics import Metrics
    from gateway.routing.levels import LevelTracker
    from gateway.safety.tenant import Tenant

SAMPLE_SECONDS = 1.0
NUM_SAMPLES = 300
PERCENTILES = 100
MAX_TENANTS = 50  # that the page shows


@dataclass(frozen=True, slots=True)
class Sample:
    """One second; totals since the start, so that rates are differences."""

    at: float
    in_flight: int
    waiting: int
    tokens: float
    totals: Totals

    def plain(self) -> dict[str, float]:
        """Return all figures by name."""
        fields = asdict(self)
        return fields | fields.pop("totals")


class Feed:
    """Samples and tells."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: Metrics,
        is_draining: Callable[[], bool],
        others: Callable[[], Mapping[int, bytes]] = dict,
    ) -> None:
        """Begin with an empty history; `others` returns the shares of other workers by number, as they wrote them."""
        self.history: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self._others = others
        self._seen: dict[int | None, Totals] = {}  # the latest of each process; None: this one
        self._totals = Totals()  # of all, since the first sample
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
        shares = self._shares()
        for worker, share in shares.items():
            self._totals = _plus(self._totals, _since(share.totals, self._seen.get(worker, Totals())))
            self._seen[worker] = share.totals
        return Sample(
            at=time.time(),
            in_flight=sum(instance.load.in_flight_everywhere for instance in instances),
            waiting=sum(share.waiting for share in shares.values()),
            tokens=sum(instance.report.generated_tokens for instance in instances if instance.report is not None),
            totals=self._totals,
        )

    def _shares(self) -> dict[int | None, Share]:
        """Return what this process and the others add."""
        own = share_of(self._dispatcher, self._metrics)
        return {None: own} | {worker: read_share(raw) for worker, raw in self._others().items()}

    def data(self) -> dict[str, Any]:
        """Return everything the page shows."""
        shares = self._shares().values()
        first_answers = [1000 * seconds for share in shares for seconds in share.first_answers]
        stages = [ledger for share in shares for ledger in share.stages]
        return {
            "now": time.time(),
            "began": self._began,
            "draining": self._is_draining(),
            "instances": [instance.facts() for instance in self._dispatcher.instances.values()],
            "history": [sample.plain() for sample in self.history],
            "ttft_ms": _summary(first_answers),
            "num_watched": len(stages),
            "stages": _stages(stages),
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
                "in_flight": tenant.in_flight_everywhere,
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
    return -tenant.in_flight_everywhere, min(shares, default=1.0)


def level_facts(levels: LevelTracker | None) -> dict[str, str] | None:
    """Return the workload level with the reason of its latest switch, or None where there are no levels."""
    if levels is None:
        return None
    reason = levels.switches[-1].reason if levels.switches else "since the start"
    return {"name": levels.level.value, "pool": levels.pool, "reason": reason}


def _plus(left: Totals, right: Totals) -> Totals:
    return Totals(**{name: value + getattr(right, name) for name, value in asdict(left).items()})


def _since(now: Totals, before: Totals) -> Totals:
    """Return what has come since; all of it where a process has begun again."""
    changes = {name: value - getattr(before, name) for name, value in asdict(now).items()}
    return Totals(**changes) if min(changes.values()) >= 0 else now


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
