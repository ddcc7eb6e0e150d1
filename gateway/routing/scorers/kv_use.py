"""score = 1 - used part of the KV cache, in [0, 1]; 1/2 where an instance does not report it."""

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate

UNKNOWN = 0.5


def score(_request: Asked, candidate: Candidate) -> float:
    """Return the score."""
    usage = candidate.load.kv_usage
    return UNKNOWN if usage is None else min(1.0, max(0.0, 1.0 - usage))
