"""What makes a gateway process one of several: its number, what all share, and a folder for its metrics.

Knows files of metrics and how they add up. Does not know processes.

Invariant: what is counted never falls, though a worker dies: its successor goes on from what it has left.
"""

import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.workers.levels import SharedLevels
from gateway.workers.table import SharedTable

PUBLISH_SECONDS = 0.5
METRICS, SHARE = "prom", "json"  # ends of files' names
COUNTED = {"counter", "histogram"}
MERGED_BY: dict[str, Callable[[float, float], float]] = {"gateway_instance_up": min, "gateway_instance_load": max}


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker's place."""

    number: int
    table: SharedTable
    levels: SharedLevels
    folder: Path
    listener: socket.socket | None = None  # a Unix socket that all workers accept at; a TCP port each listens at itself
    before: bytes = b""  # metrics that those have counted who had this place before

    @property
    def is_first(self) -> bool:
        """Whether this worker has the HTTP port."""
        return self.number == 0

    def publish(self, metrics: bytes, share: bytes) -> None:
        """Leave this worker's metrics, and its share of the operations view, where the first finds them."""
        for suffix, content in ((METRICS, merge([metrics, self.before]) if self.before else metrics), (SHARE, share)):
            part = self.folder / f"{self.number}.{suffix}.part"
            part.write_bytes(content)
            part.replace(self.folder / f"{self.number}.{suffix}")

    def render(self, own: bytes) -> bytes:
        """Return the metrics of all workers, as sums; others' are up to `PUBLISH_SECONDS` old."""
        return merge([own, self.before, *self._others(METRICS).values()])

    def shares(self) -> dict[int, bytes]:
        """Return the other workers' shares of the operations view, by number."""
        return self._others(SHARE)

    def _others(self, suffix: str) -> dict[int, bytes]:
        numbers = (number for number in range(self.table.num_workers) if number != self.number)
        files = ((number, self.folder / f"{number}.{suffix}") for number in numbers)
        return {number: file.read_bytes() for number, file in files if file.is_file()}


def counted_before(folder: Path, number: int) -> bytes:
    """Return what workers in this place have counted up to now: no states, which ended with them."""
    file = folder / f"{number}.{METRICS}"
    return merge([file.read_bytes()], COUNTED) if file.is_file() else b""


class _Merged:
    """A registry with nothing but ready families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self.families


def merge(texts: list[bytes], kinds: Collection[str] | None = None) -> bytes:
    """Return one text in Prometheus' format with the samples of all, those of equal names and labels added up.

    Only metrics of some kinds, if such are given.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if kinds is not None and family.type not in kinds:
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known = values.setdefault(family.name, {})
            how = MERGED_BY.get(family.name, float.__add__)
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                known[key] = how(known[key], sample.value) if key in known else float(sample.value)
    for name, family in families.items():
        for (sample, labels), value in values[name].items():
            family.add_sample(sample, dict(labels), value)
    return generate_latest(_Merged(families.values()))  # type: ignore[arg-type]
