"""Sequences that wait for a place in the step, and which of them comes next.

Knows tenants' shares, ranks, and the queue's bounds. Does not know blocks, budgets or time.

The tenant that has had the least service comes next, and of its sequences the one of lowest rank. So a priority class
orders a tenant's own requests, and a tenant cannot gain on others by asking for a better one.

Invariants:
1. `num_tokens` is the number of tokens of all sequences inside.
2. Only new requests are refused, never one that comes back after having been preempted.
"""

from collections.abc import Iterator

from engine.errors import QueueFull
from engine.ordered_sequences import OrderedSequences
from engine.sequence import Sequence
from engine.tenant_shares import TenantShares


def by_rank(sequence: Sequence) -> tuple[float, int]:
    """Return the key by which sequences of a tenant, and all running ones, are ordered."""
    return sequence.rank


class WaitingQueue:
    """A bounded queue, ordered by tenant and rank."""

    def __init__(self, shares: TenantShares, max_requests: int, max_tokens: int) -> None:
        """Start empty."""
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._shares = shares
        self._tenants: dict[str, OrderedSequences] = {}

    def __len__(self) -> int:
        """Number of sequences that wait."""
        return sum(map(len, self._tenants.values()))

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._tenants)

    def __iter__(self) -> Iterator[Sequence]:
        """Walk over all sequences, tenant by tenant."""
        for sequences in self._tenants.values():
            yield from sequences

    def check_room(self, num_tokens: int) -> None:
        """Refuse a new request of that many tokens where the queue is full; an empty one takes a prompt of any length.

        Raises:
            QueueFull: the queue is at its bound of requests, or would go over that of tokens.
        """
        depth = len(self)
        if depth >= self.max_requests:
            raise QueueFull(f"{depth} requests are waiting", self.max_requests)
        if depth and self.num_tokens + num_tokens > self.max_tokens:
            raise QueueFull(f"{self.num_tokens} tokens are waiting, this request has {num_tokens}", self.max_tokens)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in."""
        tenant = sequence.scheduling.tenant
        if tenant not in self._tenants:
            self._tenants[tenant] = OrderedSequences(by_rank)
        self._tenants[tenant].add(sequence)
        self.num_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that waits."""
        tenant = sequence.scheduling.tenant
        self._tenants[tenant].remove(sequence)
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self.num_tokens -= sequence.num_tokens

    def head(self) -> Sequence:
        """Return the sequence that comes next; there must be one."""
        tenants = self._tenants.items()
        return min(tenants, key=lambda item: (self._shares[item[0]], item[1].first.rank))[1].first
