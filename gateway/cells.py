"""Counters and histograms for what every request passes: plain numbers, read when Prometheus asks.

Knows names, labels and buckets. Does not know what is counted. `prometheus_client`'s own take a lock for each change,
because threads may share them; these belong to one thread, and a reader sees each number as it is at that moment.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class Spread:
    """Observations by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin with none; a bucket holds what is at most its bound, the last one all above."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take one observation."""
        index = 0
        for bound in self.bounds:  # from below: what is counted here ends in one of the first
            if value <= bound:
                break
            index += 1
        self.counts[index] += 1
        self.total += value


class Counts:
    """A counter with labels; to `prometheus_client` a collector, but without its base class, which C types forbid."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        """Register it."""
        self._name, self._documentation, self._labels = name, documentation, labels
        self._cells: dict[tuple[str, ...], Count] = {}
        registry.register(cast("Collector", self))

    def cell(self, labels: tuple[str, ...]) -> Count:
        """Return the number of these label values."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = Count()
        return cell

    def count(self, labels: tuple[str, ...]) -> None:
        """Count one under these label values."""
        cell = self._cells.get(labels) or self.cell(labels)
        cell.value += 1

    def collect(self) -> Iterator[Metric]:
        """Tell Prometheus."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, cell in list(self._cells.items()):
            family.add_metric(labels, cell.value)
        yield family


class Spreads(Collector):
    """A histogram, with labels or without."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        """Register it; `bounds` are the buckets' in ascending order."""
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, bounds
        self._cells: dict[tuple[str, ...], Spread] = {} if labels else {(): Spread(bounds)}
        registry.register(self)

    def cell(self, *labels: str) -> Spread:
        """Return the observations of these label values."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = Spread(self._bounds)
        return cell

    def collect(self) -> Iterator[Metric]:
        """Tell Prometheus."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, math.inf)]
        for labels, cell in list(self._cells.items()):
            family.add_metric(labels, list(zip(bounds, accumulate(cell.counts), strict=True)), cell.total)
        yield family
