"""Whether an instance's models are alive, told from its metrics.

Knows the heartbeat gauges and how long they may stand still. `Pulse` is pure; only `scrape` meets the network.

Triton's own health stays good when a model's process is gone, so a beat that stands still is what tells.
"""

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

STILL_SECONDS = 5.0
SILENT_SECONDS = 20.0
LONGEST_STEP = 2.0
SCRAPE_SECONDS = 2.0
BEAT = re.compile(r'^llm_heartbeat\{[^}]*model="([^"]+)"[^}]*\}\s+(\S+)', re.MULTILINE)


@dataclass(slots=True)
class Pulse:
    """What has been seen of one start of one instance.

    A pause of the watcher itself counts for no more than `LONGEST_STEP` seconds an observation.

    Attributes:
        start_seconds: how long the instance may take until its metrics answer for the first time.
        age: seconds watched.
        silent: seconds since the metrics answered.
        still: per model, the seconds since its beat changed.
    """

    start_seconds: float
    age: float = 0.0
    silent: float = 0.0
    has_answered: bool = False
    beats: dict[str, float] = field(default_factory=dict)
    still: dict[str, float] = field(default_factory=dict)

    def observe(self, beats: Mapping[str, float] | None, elapsed: float) -> None:
        """Take in one scrape, None where the metrics did not answer, `elapsed` seconds after the one before."""
        elapsed = min(elapsed, LONGEST_STEP)
        self.age += elapsed
        if beats is None:
            self.silent += elapsed
            return
        self.silent, self.has_answered = 0.0, True
        for model in self.beats.keys() | beats.keys():
            moved = model in beats and beats[model] != self.beats.get(model)
            self.still[model] = 0.0 if moved else self.still.get(model, 0.0) + elapsed
        self.beats.update(beats)

    def trouble(self) -> str | None:
        """Return why the instance counts as dead, or None while it counts as alive."""
        if not self.has_answered:
            late = self.age > self.start_seconds
            return f"its metrics did not answer within {self.start_seconds:.0f} s of its start" if late else None
        if self.silent > SILENT_SECONDS:
            return f"its metrics have not answered for {self.silent:.0f} s"
        stopped = [model for model, seconds in self.still.items() if seconds > STILL_SECONDS]
        return f"the heartbeat of {', '.join(sorted(stopped))} has stood still for over 5 s" if stopped else None


def parse_beats(text: str) -> dict[str, float]:
    """Return the heartbeat of each model in a metrics page."""
    return {model: float(value) for model, value in BEAT.findall(text)}


def scrape(url: str) -> dict[str, float] | None:
    """Return the heartbeats at `host:port`, or None where it does not answer in time."""
    connection = http.client.HTTPConnection(url, timeout=SCRAPE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return parse_beats(connection.getresponse().read().decode())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
