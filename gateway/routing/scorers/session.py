"""score = (hash(session, instance) / 2**64) ** (1 / share), in [0, 1]; 0 without a session.

Rendezvous hashing (Thaler and Ravishankar 1998): the highest wins, so a session stays where it is while its instance
is usable, and of the others none moves when one comes or goes. share is below 1 while an instance that has recovered
starts slowly: as it grows, its sessions come back one after the other.
"""

import hashlib

from gateway.routing.asked import Asked
from gateway.routing.candidates import Candidate


def score(request: Asked, candidate: Candidate) -> float:
    """Return the score."""
    if request.session is None:
        return 0.0
    digest = hashlib.blake2b(request.session, digest_size=8, key=candidate.name.encode()[:64]).digest()
    return (int.from_bytes(digest) / 2**64) ** (1.0 / candidate.endpoint.share(candidate.now))
