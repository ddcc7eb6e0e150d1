"""One instance with all that a filter or a scorer may look at."""

from dataclasses import dataclass

from gateway.endpoint import Endpoint
from gateway.loads import Load


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint, its load and the time at which both are judged."""

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
