"""Which requests may go on now, which wait, and which are refused. Pure: time comes from outside.

Knows tenants, slots and an order. Does not know what a request is, nor timers.

Invariants:
1. num_in_flight is the number of admitted tickets that have not left, and never above the limit, all workers' together.
2. A waiting ticket waits at most `max_wait` seconds: then it is refused. At most `queue_size` wait.
3. Of one tenant's tickets none overtakes another; across tenants the lower priority class goes first, then who came
   first.
"""

from bisect import insort
from contextlib import nullcontext
from dataclasses import dataclass, field

from gateway.safety.service_time import ServiceTime
from gateway.safety.tenant import Tenant
from gateway.workers.table import Row

LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not go on, and after how many seconds it may be tried again; None for never."""

    message: str
    retry_after: float | None


@dataclass(eq=False, slots=True)
class Ticket:
    """A request as admission sees it."""

    tenant: Tenant
    tokens: int  # estimated
    arrived_at: float
    number: int = 0
    admitted_at: float | None = None

    def __lt__(self, other: "Ticket") -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int]:
        return self.tenant.config.priority_class, self.number


@dataclass(slots=True)
class Admission:
    """All tickets of one gateway."""

    max_in_flight: int | None
    queue_size: int
    max_wait: float
    row: Row | None = None  # what other workers have admitted, where there are any
    num_in_flight: int = 0
    waiting: list[Ticket] = field(default_factory=list)
    service_time: ServiceTime = field(default_factory=ServiceTime)
    _count: int = 0
    _ready: list[Ticket] = field(default_factory=list)  # admitted while another entered; `pump` returns them

    def enter(self, ticket: Ticket, now: float) -> Refusal | None:
        """Take a new ticket: it is admitted or waits (see `admitted_at`), or there is a refusal."""
        delay = ticket.tenant.wait(ticket.tokens, now)
        if delay > self.max_wait:
            return _over_limit(ticket, delay, now)
        self._count += 1
        ticket.number = self._count
        insort(self.waiting, ticket)
        self._ready += [other for other in self._admit(now) if other is not ticket]
        if ticket.admitted_at is None and len(self.waiting) > self.queue_size:
            self.waiting.remove(ticket)
            return self._refusal(ticket, now)
        return None

    def leave(self, ticket: Ticket, used: int, now: float) -> None:
        """Take back a ticket: its place in the queue, or its slot with the tokens really used."""
        if ticket.admitted_at is None:
            self.waiting.remove(ticket)
            return
        if ticket in self._ready:
            self._ready.remove(ticket)
        self._note(-1)
        self.service_time.take(now - ticket.admitted_at)
        ticket.tenant.service_time.take(now - ticket.admitted_at)
        ticket.tenant.settle(ticket.tokens, used, now)

    def pump(self, now: float) -> list[tuple[Ticket, Refusal | None]]:
        """Return the tickets that are admitted now, and those refused because they have waited too long."""
        admitted, self._ready = [*self._ready, *self._admit(now)], []
        late = [ticket for ticket in self.waiting if now >= ticket.arrived_at + self.max_wait]
        for ticket in late:
            self.waiting.remove(ticket)
        return [*((ticket, None) for ticket in admitted), *((ticket, self._refusal(ticket, now)) for ticket in late)]

    def next_at(self, now: float) -> float | None:
        """Return when `pump` may have something to do although nobody has left."""
        if self._ready:
            return now
        if not self.waiting:
            return None
        first = {ticket.tenant: ticket for ticket in reversed(self.waiting)}
        refills = [now + delay for t in first.values() if (delay := t.tenant.wait(t.tokens, now)) > 0]
        looks = [now + LOOK_SECONDS] if self.row is not None else []  # nobody says when another worker's have left
        return min([*refills, *looks, *(ticket.arrived_at + self.max_wait for ticket in self.waiting)])

    def check(self) -> None:
        """Assert the invariants above."""
        assert self.max_in_flight is None or self.num_in_flight <= self.max_in_flight
        assert len(self.waiting) <= self.queue_size
        assert self.waiting == sorted(self.waiting)
        assert all(ticket.admitted_at is None for ticket in self.waiting)

    def _is_full(self) -> bool:
        others = self.row.others() if self.row is not None else 0
        return self.max_in_flight is not None and self.num_in_flight + others >= self.max_in_flight

    def _note(self, change: int) -> None:
        self.num_in_flight += change
        if self.row is not None:
            self.row.set(self.num_in_flight)

    def _admit(self, now: float) -> list[Ticket]:
        """Let go on who may: no other worker looks and takes meanwhile."""
        with nullcontext() if self.row is None else self.row.exclusive():
            return self._take(now)

    def _take(self, now: float) -> list[Ticket]:
        admitted: list[Ticket] = []
        blocked: set[Tenant] = set()
        for ticket in list(self.waiting):
            if self._is_full():
                break
            tenant = ticket.tenant
            if tenant in blocked or not tenant.has_room or tenant.wait(ticket.tokens, now) > 0:
                blocked.add(tenant)
                continue
            self.waiting.remove(ticket)
            self._note(1)
            ticket.admitted_at = now
            tenant.take(ticket.tokens, now)
            admitted.append(ticket)
        return admitted

    def _refusal(self, ticket: Ticket, now: float) -> Refusal:
        """Name what a ticket would have to wait for: its tenant's limits, its tenant's slots, or everybody's."""
        delay = ticket.tenant.wait(ticket.tokens, now)
        if delay > 0:
            return _over_limit(ticket, delay, now)
        tenant = ticket.tenant
        slots, ahead, whose, mean = self.max_in_flight, len(self.waiting), "the gateway", self.service_time
        if not tenant.has_room:
            slots, whose, mean = tenant.config.max_concurrent, f"tenant {tenant.config.name!r}", tenant.service_time
            ahead = sum(other.tenant is tenant for other in self.waiting)
        retry_after = mean.seconds * (ahead + 1) / (slots or 1)
        return Refusal(f"{whose} has its limit of {slots} in flight, and {ahead} waiting", retry_after)


def _over_limit(ticket: Ticket, delay: float, now: float) -> Refusal:
    name, exceeded = ticket.tenant.config.name, ticket.tenant.exceeded(ticket.tokens, now)
    if delay == float("inf"):
        return Refusal(f"a request of up to {ticket.tokens} tokens exceeds the limit of {name!r}: {exceeded}", None)
    return Refusal(f"tenant {name!r} has reached its limit of {exceeded}", delay)
