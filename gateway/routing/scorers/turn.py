"""score = 1 / (1 + last pick), in (0, 1]: the instance picked longest ago has the highest, one never picked 1."""

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate


def score(_request: Asked, candidate: Candidate) -> float:
    """Return the score."""
    return 1.0 / (1.0 + candidate.load.last_picked)
