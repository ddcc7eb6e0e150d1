"""The policies by name: which filters, which scorers with which weights, and how many instances are compared.

Knows how parts combine. Does not know what they compute.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate
from gateway.routing.filters import Filter, untried, warmed_up, within_bound
from gateway.routing.scorers import kv_use, queue_depth, session, turn
from gateway.routing.scorers.prefix import PrefixMarks

Scorer = Callable[[Asked, Candidate], float]


class PolicyName(StrEnum):
    """What can be configured."""

    QUEUE_DEPTH = "queue_depth"
    LEAST_KV = "least_kv"
    PREFIX = "prefix"
    SESSION = "session"
    POWER_OF_TWO = "power_of_two"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True)
class Policy:
    """How one instance is chosen.

    Attributes:
        scorers: each with its weight; the highest weighted sum wins.
        filters: applied in turn.
        num_choices: how many candidates, drawn at random, are compared; None for all.
        marks: what to tell of each request placed, where prefixes count.
        wants_session: whether requests are to be asked for their session.
    """

    scorers: tuple[tuple[Scorer, float], ...]
    filters: tuple[Filter, ...] = (untried,)
    num_choices: int | None = None
    marks: PrefixMarks | None = field(default=None, compare=False)
    wants_session: bool = False


QUEUE_DEPTH = Policy(((queue_depth.score, 1.0),))


def make_policy(name: PolicyName) -> Policy:
    """Return a policy with a memory of its own, where it has one."""
    queue = (queue_depth.score, 1.0)
    guarded, warmed = (untried, within_bound), (untried, warmed_up)
    match name:
        case PolicyName.QUEUE_DEPTH:
            return QUEUE_DEPTH
        case PolicyName.LEAST_KV:
            return Policy(((kv_use.score, 1.0), (queue_depth.score, 0.1)), warmed)
        case PolicyName.PREFIX:
            marks = PrefixMarks()
            return Policy(((marks.score, 2.0), queue), guarded, marks=marks)
        case PolicyName.SESSION:
            return Policy(((session.score, 2.0), (queue_depth.score, 0.001)), guarded, wants_session=True)
        case PolicyName.POWER_OF_TWO:
            return Policy((queue,), num_choices=2)
        case PolicyName.ROUND_ROBIN:
            return Policy(((turn.score, 1.0),), warmed)
