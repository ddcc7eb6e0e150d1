"""Filter, score, pick.

Knows a policy's parts. Does not know connections; time, load and randomness are given.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from gateway.endpoint import Endpoint
from gateway.loads import Load
from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate
from gateway.routing.filters import Filter
from gateway.routing.policy import QUEUE_DEPTH, Policy


def pick(
    request: Asked,
    endpoints: Iterable[Endpoint],
    loads: Mapping[str, Load],
    now: float,
    rng: random.Random,
    *,
    policy: Policy = QUEUE_DEPTH,
    filters: Sequence[Filter] = (),
) -> Endpoint | None:
    """Return the usable endpoint with the highest score, or None where none is usable.

    Of equals the one picked longest ago is taken, so that ties rotate; `rng` decides between those never picked.
    """
    candidates: Sequence[Candidate] = [Candidate(e, loads[e.name], now) for e in endpoints if e.is_usable]
    if not candidates:
        return None
    for keep in (*filters, *policy.filters):
        candidates = keep(request, candidates, rng) or candidates
    if policy.num_choices is not None and len(candidates) > policy.num_choices:
        candidates = rng.sample(candidates, policy.num_choices)

    def rank(candidate: Candidate) -> tuple[float, int, float]:
        total = sum(weight * score(request, candidate) for score, weight in policy.scorers)
        return -total, candidate.load.last_picked, rng.random()

    return min(candidates, key=rank).endpoint
