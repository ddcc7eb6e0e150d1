"""score = 1 - used part of the KV cache, in [0, 1]; 1/2 where an instance does not report it.

The older a report, the nearer to 1/2: who has stopped to report is not thought empty for ever.
"""

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate

UNKNOWN = 0.5


def score(_request: Asked, candidate: Candidate) -> float:
    """Return the score."""
    load = candidate.load
    if load.kv_usage is None:
        return UNKNOWN
    free = min(1.0, max(0.0, 1.0 - load.kv_usage))
    return UNKNOWN + (free - UNKNOWN) * load.discount(candidate.now)
