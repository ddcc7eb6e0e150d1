"""What one tenant has in flight and has left of its limits.

Knows counts and a given time. Does not know requests, keys or other tenants.
"""

from dataclasses import dataclass, field

from gateway.safety.bucket import Bucket
from gateway.safety.config import LimitConfig, TenantConfig
from gateway.safety.service_time import ServiceTime
from gateway.wire.protobuf import encode_int_parameter, encode_parameter
from gateway.workers.seat import Seat
from gateway.workers.table import Row


@dataclass(eq=False, slots=True)
class Tenant:
    """A tenant at run time."""

    config: TenantConfig
    buckets: list[tuple[LimitConfig, Bucket]]
    row: Row | None = None  # what other workers have in flight, where there are any
    num_in_flight: int = 0
    service_time: ServiceTime = field(default_factory=ServiceTime)
    is_gone: bool = False  # whether a later configuration does not know it
    parameters: bytes = field(init=False)  # what the scheduler is to know, ready to be appended to a request

    def __post_init__(self) -> None:
        self._describe()

    def _describe(self) -> None:
        self.parameters = (
            encode_parameter("tenant", self.config.name)
            + encode_int_parameter("tenant_weight", self.config.weight)
            + encode_int_parameter("priority_class", self.config.priority_class)
        )

    @property
    def has_room(self) -> bool:
        """Whether one more may be in flight."""
        if self.config.max_concurrent is None:
            return True
        return self.in_flight_everywhere < self.config.max_concurrent

    @property
    def in_flight_everywhere(self) -> int:
        """Requests in flight, those of other workers included."""
        return self.num_in_flight + (self.row.others() if self.row is not None else 0)

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit is in tokens."""
        return any(limit.what == "tokens" for limit, _ in self.buckets)

    def wait(self, tokens: int, now: float) -> float:
        """Return in how many seconds the limits allow one more request with so many tokens."""
        return max((bucket.wait(_cost(limit, tokens), now) for limit, bucket in self.buckets), default=0.0)

    def exceeded(self, tokens: int, now: float) -> str:
        """Name the limit that keeps a request waiting longest."""
        limit, _ = max(self.buckets, key=lambda pair: pair[1].wait(_cost(pair[0], tokens), now))
        return f"{limit.amount} {limit.what} in {limit.per_s:g} s"

    def take(self, tokens: int, now: float) -> None:
        """Count a request that goes ahead."""
        self._count(1)
        for limit, bucket in self.buckets:
            bucket.take(_cost(limit, tokens), now)

    def settle(self, estimated: int, used: int, now: float) -> None:
        """Count a request that has ended, with the tokens it really took."""
        self._count(-1)
        for limit, bucket in self.buckets:
            if limit.what == "tokens":
                bucket.take(used - estimated, now)

    def become(self, other: "Tenant", now: float) -> None:
        """Go on under another configuration, with what is in flight and what is left of limits that stay."""
        left = dict(zip(bucket_names(self.config), self.buckets, strict=True))
        for name, (_, bucket) in zip(bucket_names(other.config), other.buckets, strict=True):
            if name in left:
                bucket.go_on_from(left[name][1], now)
        self.config, self.buckets = other.config, other.buckets
        self._describe()

    def _count(self, change: int) -> None:
        self.num_in_flight += change
        if self.row is not None:
            self.row.set(self.num_in_flight)


def make_tenant(config: TenantConfig, now: float, seat: Seat | None = None) -> Tenant:
    """Return a tenant that has used nothing, or with a `seat` what it has used by now at all workers."""
    buckets: list[tuple[LimitConfig, Bucket]] = []
    for name, limit in zip(bucket_names(config), config.limits, strict=True):
        capacity, rate = limit.burst or limit.amount, limit.amount / limit.per_s
        bucket = Bucket(capacity, rate, now) if seat is None else seat.levels.bucket(name, capacity, rate, now)
        buckets.append((limit, bucket))
    return Tenant(config, buckets, None if seat is None else seat.table.row(f"\0tenant {config.name}", seat.number))


def bucket_names(config: TenantConfig) -> list[str]:
    """Return a name for each of a tenant's limits: whose it is, its number, and what a changed limit would change."""
    return [f"{config.name} {n} {limit.what}/{limit.per_s:g}s" for n, limit in enumerate(config.limits)]


def _cost(limit: LimitConfig, tokens: int) -> int:
    return tokens if limit.what == "tokens" else 1
