"""Filter, score, pick.

Knows a policy's parts. Does not know connections; load and randomness are given.
"""

import math
import random
from collections.abc import Sequence

from gateway.endpoint import Endpoint
from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate
from gateway.routing.filters import Filter
from gateway.routing.policy import QUEUE_DEPTH, Policy


def pick(
    request: Asked,
    candidates: Sequence[Candidate],
    rng: random.Random,
    policy: Policy = QUEUE_DEPTH,
    filters: Sequence[Filter] = (),
) -> Endpoint | None:
    """Return the candidate's endpoint with the highest score, or None where there are none.

    Of equals the one picked longest ago is taken, so that ties rotate; `rng` decides between those never picked.
    """
    if not candidates:
        return None
    for keep in (*filters, *policy.filters) if filters else policy.filters:
        candidates = keep(request, candidates, rng) or candidates
    if policy.num_choices is not None and len(candidates) > policy.num_choices:
        candidates = rng.sample(candidates, policy.num_choices)
    best, picked = -math.inf, 0
    chosen, num_equal = candidates[0], 0
    for candidate in candidates:
        total = 0.0
        for score, weight in policy.scorers:
            total += weight * score(request, candidate)
        last = candidate.load.last_picked
        if total > best or (total == best and last < picked):
            best, picked, chosen, num_equal = total, last, candidate, 1
        elif total == best and last == picked:
            num_equal += 1
            if rng.random() * num_equal < 1:  # each of n equal ones ends up chosen once in n times
                chosen = candidate
    return chosen.endpoint
