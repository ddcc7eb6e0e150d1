"""What tenants have left of their limits, as rows that outlive the gateway, and back.

Knows buckets and two clocks. Does not know where rows are kept.
"""

from collections.abc import Iterable, Iterator, Mapping

from gateway.safety.bucket import Bucket
from gateway.safety.tenant import Tenant, bucket_names

LevelRow = tuple[str, float, int]  # name of a bucket, its level, ns of the wall clock


def level_rows(tenants: Iterable[Tenant], now: float, now_ns: int) -> list[LevelRow]:
    """Return the level of each bucket at `now`, in seconds of the loop's clock, and `now_ns`."""
    return [(name, bucket.level_at(now), now_ns) for name, bucket in _named(tenants)]


def restore(tenants: Iterable[Tenant], saved: Mapping[str, tuple[float, int]], now: float, now_ns: int) -> None:
    """Bring buckets that nobody has used yet to where they were, filled as by the time since."""
    for name, bucket in _named(tenants):
        if name in saved and bucket.is_fresh:
            level, at_ns = saved[name]
            missing = bucket.capacity - level - bucket.rate * max(0.0, (now_ns - at_ns) / 1e9)
            bucket.take(max(0.0, missing), now)


def _named(tenants: Iterable[Tenant]) -> Iterator[tuple[str, Bucket]]:
    for tenant in tenants:
        for name, (_, bucket) in zip(bucket_names(tenant.config), tenant.buckets, strict=True):
            yield name, bucket
