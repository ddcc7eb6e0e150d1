"""What routing knows of a request.

Knows sizes, names and hashes. Does not know bytes or tensors.
"""

from dataclasses import dataclass, field

BYTES_PER_TOKEN = 4
TOKENS_PER_REQUEST = 512  # prompt tokens that weigh as much as one more request
BYTES_PER_REQUEST = BYTES_PER_TOKEN * TOKENS_PER_REQUEST


@dataclass(frozen=True)
class Asked:
    """One request, as far as routing cares.

    Attributes:
        tried: names of the instances that have failed it.
        session: what requests that belong together share; None where it says nothing.
        prefix: chained hashes of its prompt's first pieces; empty where nobody asked for them.
    """

    tried: frozenset[str] | set[str] = field(default_factory=frozenset)
    session: bytes | None = None
    prefix: tuple[int, ...] = ()


def prefill_weight(num_bytes: int) -> float:
    """Return what a prompt of this size weighs until it is computed, in requests."""
    return num_bytes / BYTES_PER_REQUEST
