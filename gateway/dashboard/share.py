"""What each process of a gateway adds to the operations view: its totals, and what became of its latest requests.

Knows where a process's figures are and their form as JSON. Does not know how they travel or how they are shown.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from gateway.dispatcher import Dispatcher
    from gateway.metrics import Metrics

REFUSED = "resource_exhausted"
MAX_LATEST = 256  # requests of each process: their figures are read once a second


@dataclass(frozen=True, slots=True)
class Totals:
    """What has been counted since a process's start."""

    requests: float = 0
    refused: float = 0
    messages: int = 0
    answered: float = 0  # requests whose first answer has come, and the seconds that they waited for it
    answer_seconds: float = 0


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of the view."""

    waiting: int
    totals: Totals
    first_answers: list[float]  # seconds, of the latest requests
    stages: list[dict[str, int]]  # ns of each stage, of the latest watched ones


def share_of(dispatcher: Dispatcher, metrics: Metrics) -> Share:
    """Return this process's own; from any thread."""
    tallies = [instance.pool.tally for instance in list(dispatcher.instances.values())]
    totals = Totals(
        requests=_total(metrics.requests),
        refused=_total(metrics.requests, outcome=REFUSED),
        messages=metrics.slow.messages + sum(tally.messages for tally in tallies),
        answered=_total(metrics.ttft_seconds, "_count"),
        answer_seconds=_total(metrics.ttft_seconds, "_sum"),
    )
    observation = dispatcher.observation
    latest, watched = list(observation.recent_first)[-MAX_LATEST:], list(observation.recent)[-MAX_LATEST:]
    return Share(dispatcher.num_waiting, totals, latest, watched)


def write_share(share: Share) -> bytes:
    """Return what `read_share` takes."""
    return json.dumps(asdict(share)).encode()


def read_share(raw: bytes) -> Share:
    """Return another process's."""
    fields = json.loads(raw)
    return Share(**fields | {"totals": Totals(**fields["totals"])})


def _total(metric: Collector, suffix: str = "_total", **labels: str) -> float:
    samples = [sample for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix)]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
