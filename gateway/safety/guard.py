"""Who opens a call, and whether that may be.

Knows methods, keys and tenants. Does not know requests or limits.

Invariants:
1. Of KServe's service only what infers or describes is open; everything else is management, unknown methods included.
2. Where there are tenants, every call but health checks belongs to one, and its key goes no further than here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gateway.call import SERVICE, Call
from gateway.safety.budgets import restore
from gateway.safety.config import SafetyConfig
from gateway.safety.keys import find_tenant, tenants_by_digest
from gateway.safety.tenant import Tenant, make_tenant
from gateway.status import Code, Failure
from gateway.wire.headers import Headers
from gateway.workers.seat import Seat

OPEN_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})
USER_METHODS = OPEN_METHODS | {
    "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer", "ModelStreamInfer",
    "RepositoryIndex",
}  # fmt: skip
HEALTH_SERVICE = b"/grpc.health.v1.Health/"
KEY_HEADERS = (b"authorization", b"x-api-key")
BEARER = b"bearer "


class Denied(Exception):
    """A call that may not be opened."""

    def __init__(self, code: Code, message: str) -> None:
        """Keep what the caller is told."""
        super().__init__(message)
        self.failure = Failure(code, message)


class Guard:
    """Keeps the door."""

    def __init__(self, config: SafetyConfig, now: float, seat: Seat | None = None) -> None:
        """Begin with tenants that have used nothing, or as one of several workers with what they have used by now."""
        self._seat = seat
        self.tenants: dict[str, Tenant] = {tenant.name: make_tenant(tenant, now, seat) for tenant in config.tenants}
        self._take(config)

    def prepare(self, config: SafetyConfig, now: float) -> Callable[[], None]:
        """Return what puts another configuration in force: tenants that stay keep what they have used.

        Raises:
            TableFull: workers share no more memory for the new ones.
        """
        made = {tenant.name: make_tenant(tenant, now, self._seat) for tenant in config.tenants}

        def commit() -> None:
            for name, tenant in self.tenants.items():
                tenant.is_gone = name not in made
            for name in self.tenants.keys() & made.keys():
                self.tenants[name].become(made[name], now)
                made[name] = self.tenants[name]
            self.tenants = made
            self._take(config)

        return commit

    def _take(self, config: SafetyConfig) -> None:
        self._keys = tenants_by_digest(config.keys)
        self._anonymous = config.anonymous_tenant
        self._allow_management = config.allow_management

    def restore(self, saved: Mapping[str, tuple[float, int]], now: float, now_ns: int) -> None:
        """Bring tenants' limits to where an earlier gateway has left them."""
        restore(self.tenants.values(), saved, now, now_ns)

    def open(self, call: Call) -> Call:
        """Return the call as it may go on, with its tenant where there are any.

        Raises:
            Denied: it may not.
        """
        service, _, method = call.path.rpartition(b"/")
        if service == SERVICE and method.decode("latin-1") not in USER_METHODS and not self._allow_management:
            raise Denied(Code.PERMISSION_DENIED, f"{method.decode('latin-1')} is not open to clients of this gateway")
        if not self.tenants or call.path.startswith(HEALTH_SERVICE) or method.decode("latin-1") in OPEN_METHODS:
            return call
        tenant = self.identify(call.headers)
        kept = tuple((name, value) for name, value in call.headers if name not in KEY_HEADERS)
        return replace(call, headers=kept, tenant=tenant)

    def identify(self, headers: Sequence[tuple[bytes, bytes]] | Headers) -> Tenant | None:
        """Return whose key the headers hold; None where there are no tenants at all.

        Raises:
            Denied: there is no key, or an unknown one.
        """
        if not self.tenants:
            return None
        key = _key_of(dict(headers))
        name = self._anonymous if key is None else find_tenant(self._keys, key)
        if name is None:
            what = "no API key was given" if key is None else "the API key is not known"
            raise Denied(Code.UNAUTHENTICATED, f"{what}; send it as `authorization: Bearer KEY` or `x-api-key: KEY`")
        return self.tenants[name]


def _key_of(fields: dict[bytes, bytes]) -> bytes | None:
    given = fields.get(b"authorization", b"")
    if given[: len(BEARER)].lower() == BEARER:
        return given[len(BEARER) :].strip()
    return fields.get(b"x-api-key")
