"""score = share / (1 + depth), in (0, 1]: 1 for an idle instance, 1/2 with one request.

depth is waiting + running as reported, plus what was sent since, in requests, where a prompt that is still to be
computed counts for its size. share is below 1 while an instance that has recovered starts slowly.
"""

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate


def score(_request: Asked, candidate: Candidate) -> float:
    """Return the score."""
    endpoint, now = candidate.endpoint, candidate.now
    share = 1.0 if endpoint.recovered_at is None else endpoint.share(now)
    return share / (1.0 + candidate.load.total(now))
