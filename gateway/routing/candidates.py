"""One instance with all that a filter or a scorer may look at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.endpoint import Endpoint
from gateway.loads import Load


@dataclass
class Candidate:
    """An endpoint, its load and the time at which both are judged.

    Who hands candidates out keeps them and sets `now` before each choice: making them anew costs as much as choosing.
    """

    endpoint: Endpoint
    load: Load
    now: float

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.endpoint.name

    @property
    def depth(self) -> float:
        """What it has to do, in requests."""
        return self.load.total(self.now)


def usable(endpoints: Iterable[Endpoint], loads: Mapping[str, Load], now: float) -> list[Candidate]:
    """Return the endpoints that new requests may go to; `loads` are by their names."""
    return [Candidate(endpoint, loads[endpoint.name], now) for endpoint in endpoints if endpoint.is_usable]
