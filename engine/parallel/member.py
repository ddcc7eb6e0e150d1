"""What one rank knows of its group.

Knows its place, the collectives and who holds which experts. Does not know processes or models.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from engine.batch import Batch
from engine.parallel.collectives import Collectives
from engine.parallel.config import Place
from engine.parallel.placement import ExpertPlacement
from engine.step_shapes import StepShape


@dataclass(slots=True, frozen=True)
class Member:
    """One rank.

    Attributes:
        placements: who holds which experts, by the layer's index.
        step: tells the other ranks to compute a batch, and by which recording, and lasts while this rank launches it;
            nothing on ranks that are told.
        meet: says that this rank has loaded its part and, on rank 0, returns once all have: one that cannot is not
            waited for in a collective.
    """

    place: Place
    collectives: Collectives
    placements: dict[int, ExpertPlacement]
    step: Callable[[Batch, StepShape | None], AbstractContextManager[None]] = lambda *_: nullcontext()
    meet: Callable[[], None] = lambda: None

    def place_of(self, rank: int) -> Place:
        """Return another rank's place."""
        return Place(self.place.config, rank)
