"""Which instances are considered. A filter that would leave none is passed over: a worse instance beats no answer.

Knows candidates. Does not know how the remaining ones are scored.
"""

import random
from collections.abc import Callable, Mapping, Sequence

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate

Filter = Callable[[Asked, Sequence[Candidate], random.Random], Sequence[Candidate]]
BOUND = 1.25  # times the mean load; above it an instance is full (Mirrokni et al. 2018, bounded loads)
FREE = 4.0  # requests that affinity may always gather on one instance


def untried(request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
    """Keep the instances that have not failed this request."""
    if not request.tried:
        return candidates
    return [candidate for candidate in candidates if candidate.name not in request.tried]


def no_outliers(_request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
    """Keep the instances that do about as well as the others of their pool."""
    return [candidate for candidate in candidates if not candidate.endpoint.outlier]


def within_bound(_request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
    """Keep the instances that with one more request have at most `BOUND` times the mean: affinity is to flood none."""
    limit = BOUND * (sum(candidate.depth for candidate in candidates) + 1) / len(candidates)
    return [candidate for candidate in candidates if candidate.depth + 1 <= max(FREE, limit)]


def in_pool(pool: str) -> Filter:
    """Return a filter that keeps the instances of one pool."""

    def keep(_request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
        return [candidate for candidate in candidates if candidate.endpoint.pool == pool]

    return keep


def split(weights: Mapping[str, float]) -> Filter:
    """Return a filter that keeps one group, drawn by its weight; a group without a weight counts 0."""

    def keep(_request: Asked, candidates: Sequence[Candidate], rng: random.Random) -> Sequence[Candidate]:
        groups = sorted({candidate.endpoint.group for candidate in candidates})
        shares = [weights.get(group, 0.0) for group in groups]
        if not any(shares):
            return candidates
        (chosen,) = rng.choices(groups, shares)
        return [candidate for candidate in candidates if candidate.endpoint.group == chosen]

    return keep
