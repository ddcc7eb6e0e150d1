"""Which instances are considered. A filter that would leave none is passed over: a worse instance beats no answer.

Knows candidates. Does not know how the remaining ones are scored.
"""

import hashlib
import random
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate

Filter = Callable[[Asked, Sequence[Candidate], random.Random], Sequence[Candidate]]
BOUND = 1.25  # times the mean load; above it an instance is full (Mirrokni et al. 2018, bounded loads)
FREE = 8.0  # requests that affinity may always gather on one instance


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


def warmed_up(_request: Asked, candidates: Sequence[Candidate], rng: random.Random) -> Sequence[Candidate]:
    """Keep an instance that has just recovered as often as its share says, for policies whose scores do not know it."""
    return [candidate for candidate in candidates if rng.random() < candidate.endpoint.share(candidate.now)]


def in_pool(pool: str) -> Filter:
    """Return a filter that keeps the instances of one pool."""

    def keep(_request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
        return [candidate for candidate in candidates if candidate.endpoint.pool == pool]

    return keep


def with_weight(weights: Mapping[str, float]) -> Filter:
    """Return a filter that keeps the groups that are to have anything at all; one without a weight is not."""

    def keep(_request: Asked, candidates: Sequence[Candidate], _rng: random.Random) -> Sequence[Candidate]:
        return [candidate for candidate in candidates if weights.get(candidate.endpoint.group)]

    return keep


def split(weights: Mapping[str, float]) -> Filter:
    """Return a filter that keeps one group, drawn by its weight; a session draws the same one each time.

    As a group's weight grows, only sessions move that it gains.
    """

    def keep(request: Asked, candidates: Sequence[Candidate], rng: random.Random) -> Sequence[Candidate]:
        groups = sorted({candidate.endpoint.group for candidate in candidates})
        ends = list(accumulate(weights.get(group, 0.0) for group in groups))
        if not ends[-1]:
            return candidates
        point = rng.random() if request.session is None else _point(request.session)
        chosen = groups[bisect(ends, point * ends[-1], hi=len(ends) - 1)]
        return [candidate for candidate in candidates if candidate.endpoint.group == chosen]

    return keep


def _point(session: bytes) -> float:
    """Return where a session stands between 0 and 1."""
    return int.from_bytes(hashlib.blake2b(session, digest_size=6).digest()) / 2**48
