"""What makes a gateway process one of several: its number, what all share, and a folder for its metrics.

Knows files of metrics and how they add up. Does not know processes.
"""

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.workers.levels import SharedLevels
from gateway.workers.table import SharedTable

PUBLISH_SECONDS = 0.5
MERGED_BY: dict[str, Callable[[float, float], float]] = {"gateway_instance_up": min, "gateway_instance_load": max}


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker's place."""

    number: int
    table: SharedTable
    levels: SharedLevels
    folder: Path
    listener: socket.socket | None = None  # a Unix socket that all workers accept at; a TCP port each listens at itself

    @property
    def is_first(self) -> bool:
        """Whether this worker has the HTTP port."""
        return self.number == 0

    def publish(self, metrics: bytes) -> None:
        """Leave this worker's metrics where the first finds them."""
        part = self._file(self.number).with_suffix(".part")
        part.write_bytes(metrics)
        part.replace(self._file(self.number))

    def render(self, own: bytes) -> bytes:
        """Return the metrics of all workers, as sums; others' are up to `PUBLISH_SECONDS` old."""
        others = [self._file(number) for number in range(self.table.num_workers) if number != self.number]
        return merge([own, *(file.read_bytes() for file in others if file.is_file())])

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.prom"


class _Merged:
    """A registry with nothing but ready families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self.families


def merge(texts: list[bytes]) -> bytes:
    """Return one text in Prometheus' format with the samples of all, those of equal names and labels added up."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
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
