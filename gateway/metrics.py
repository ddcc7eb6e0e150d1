"""What the gateway tells Prometheus.

Knows names and labels. Does not know who counts. The hot path counts in plain integers, which are read when scraped.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.cells import Counts, Spreads
from gateway.routing.levels import LevelTracker
from gateway.wire.express import Tally

TTFT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
InstanceFacts = tuple[str, int, bool, float, Tally]  # name, in flight, usable, load, express lane


class Metrics:
    """All metrics of one gateway."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.slow = Tally()
        self.instances: Callable[[], Iterable[InstanceFacts]] = tuple
        self.level: Callable[[], LevelTracker | None] = lambda: None
        self.requests = Counts(
            "gateway_requests", "Requests that ended.", ["method", "instance", "outcome"], self.registry
        )
        self.calls = Counts(
            "gateway_calls", "Calls of clients (streams) that ended.", ["method", "outcome"], self.registry
        )
        self.http_answers = Counts(
            "gateway_http_answers", "Answers under /v1, streams as they begin.", ["path", "status"], self.registry
        )
        self.retries = Counter(
            "gateway_retries", "Requests sent again after failing at an instance.", ["instance"], registry=self.registry
        )
        self.resumes = Counter(
            "gateway_resumes", "Answered requests that went on elsewhere.", ["instance"], registry=self.registry
        )
        self.hedges = Counter(
            "gateway_hedges", "Second copies of requests whose first answer was late.", ["instance"],
            registry=self.registry,
        )  # fmt: skip
        self.hedge_wins = Counter(
            "gateway_hedge_wins", "Second copies that went on in the place of the first.", ["instance"],
            registry=self.registry,
        )  # fmt: skip
        self.level_switches = Counter(
            "gateway_level_switches", "Changes to a workload level.", ["level"], registry=self.registry
        )
        self.ejections = Counter(
            "gateway_ejections", "Times an instance was left alone.", ["instance", "health"], registry=self.registry
        )
        self.aborts = Counter(
            "gateway_aborts", "Abort messages for requests that clients left.", ["instance"], registry=self.registry
        )
        self.ttft_seconds = Spreads(
            "gateway_ttft_seconds", "From a request's last byte to its first response.", (), TTFT_BUCKETS, self.registry
        )
        self.ttft = self.ttft_seconds.cell()
        self.registry.register(_LiveCollector(self))

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _LiveCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("gateway_in_flight_requests", "Requests at an instance now.", labels=["instance"])
        up = GaugeMetricFamily("gateway_instance_up", "1 when an instance is routed to.", labels=["instance"])
        load = GaugeMetricFamily(
            "gateway_instance_load", "Load that routing compares, in requests.", labels=["instance"]
        )
        messages, num_bytes = self.metrics.slow.messages, self.metrics.slow.num_bytes
        for name, count, usable, total, tally in self.metrics.instances():
            in_flight.add_metric([name], count)
            up.add_metric([name], float(usable))
            load.add_metric([name], total)
            messages += tally.messages
            num_bytes += tally.num_bytes
        yield from (in_flight, up, load)
        if (levels := self.metrics.level()) is not None:
            yield from _level_metrics(levels)
        yield CounterMetricFamily("gateway_relayed_messages", "Responses that went to clients.", value=messages)
        yield CounterMetricFamily("gateway_relayed_bytes", "Bytes of those, with gRPC prefixes.", value=num_bytes)


def _level_metrics(levels: LevelTracker) -> Iterator[Metric]:
    level = GaugeMetricFamily("gateway_level", "1 for the workload level in force.", labels=["level", "pool"])
    for each, pool in levels.rule.pools.items():
        level.add_metric([each.value, pool], float(each is levels.level))
    yield level
    yield GaugeMetricFamily("gateway_level_in_flight", "Mean of requests in flight that levels follow.", levels.mean)
