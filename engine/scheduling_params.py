"""What a request says about how it is to be served: for whom, how urgently, and what it may share.

Knows names, types, defaults and limits. Does not know queues, blocks, sampling or where the values came from.

Invariant: a `SchedulingParams` that exists is valid; a value outside its limits is refused with the limit and itself.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.errors import InvalidRequest
from engine.option_checks import check_bool, check_int

LOWEST_PRIORITY_CLASS = 100
MAX_TENANT_WEIGHT = 1000
MAX_DEADLINE_MS = 10**15  # above the longest grpc-timeout, 99999999 hours
MAX_NAME_CHARS = 256


@dataclass(slots=True, frozen=True)
class SchedulingParams:
    """How one request is to be served.

    Attributes:
        tenant: who it is for; tenants share the engine by weight.
        tenant_weight: the tenant's share against others', 1 to 1000; a tenant's latest request says it.
        priority_class: 0 is served first, 100 last, among the requests of one tenant and where blocks are short.
        deadline_ms: milliseconds after arrival at the engine at which the request ends with what it has; None is never.
        cache_salt: KV blocks are shared only between requests of the same salt.
        enable_prefix_cache: false neither reads nor feeds the prefix cache.
    """

    tenant: str = ""
    tenant_weight: int = 1
    priority_class: int = 4
    deadline_ms: int | None = None
    cache_salt: str = ""
    enable_prefix_cache: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequest: a value has the wrong type or lies outside its limits.
        """
        _check_name("tenant", self.tenant)
        _check_name("cache_salt", self.cache_salt)
        check_int("tenant_weight", self.tenant_weight, 1, MAX_TENANT_WEIGHT)
        check_int("priority_class", self.priority_class, 0, LOWEST_PRIORITY_CLASS)
        if self.deadline_ms is not None:
            check_int("deadline_ms", self.deadline_ms, 1, MAX_DEADLINE_MS)
        check_bool("enable_prefix_cache", self.enable_prefix_cache)

    @classmethod
    def from_mapping(cls, facts: Mapping[str, Any]) -> "SchedulingParams":
        """Build from a decoded JSON object.

        Raises:
            InvalidRequest: an unknown name, a wrong type, or a value outside its limits.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(facts) - known)
        if unknown:
            raise InvalidRequest(f"unknown scheduling parameter {unknown[0]!r}; known are: {', '.join(sorted(known))}")
        return cls(**facts)

    def deadline(self, arrived: float) -> float | None:
        """Return when the request must end, in seconds of the clock that `arrived` was read from."""
        return None if self.deadline_ms is None else arrived + self.deadline_ms / 1000

    def to_mapping(self) -> dict[str, Any]:
        """Return what `from_mapping` takes back, defaults left out."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT_SCHEDULING, name)}


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
        raise InvalidRequest(f"{name} must be a string of at most {MAX_NAME_CHARS} characters, got {value!r:.300}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} must be valid Unicode, got {value!r}: {error.reason}") from None


DEFAULT_SCHEDULING = SchedulingParams()
