"""What the headers of a client's stream ask for, and the headers that go on to an instance.

Knows header names. Does not know streams or messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.status import GRPC_CONTENT
from gateway.wire.headers import Headers, encode_headers

if TYPE_CHECKING:
    from gateway.safety.tenant import Tenant

SERVICE = b"/inference.GRPCInferenceService"
STREAM_INFER = SERVICE + b"/ModelStreamInfer"
METERED = frozenset({STREAM_INFER, SERVICE + b"/ModelInfer"})
SERVER_READY = SERVICE + b"/ServerReady"
METHODS = frozenset(
    b"ServerLive ServerReady ModelReady ServerMetadata ModelMetadata ModelInfer ModelStreamInfer ModelConfig "
    b"ModelStatistics RepositoryIndex RepositoryModelLoad RepositoryModelUnload SystemSharedMemoryStatus "
    b"SystemSharedMemoryRegister SystemSharedMemoryUnregister CudaSharedMemoryStatus CudaSharedMemoryRegister "
    b"CudaSharedMemoryUnregister TraceSetting LogSettings".split()
)
STATUS_FLAG = b"triton_grpc_error"
LEDGER_FLAG = b"x-ledger"
WHOLE_FLAG = b"x-answered-whole"
METHOD_NAMES = {SERVICE + b"/" + name: name.decode() for name in METHODS}
TRAILERS_WANTED = (b"te", b"trailers")
TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
MAX_TIMEOUT_DIGITS = 8
CACHED_CALLS = 256
CONNECTION_HEADERS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"}
PER_STREAM_HEADERS = {STATUS_FLAG, LEDGER_FLAG, WHOLE_FLAG, b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}


class BadCall(Exception):
    """Headers that open no gRPC call; carries the HTTP status."""

    def __init__(self, http_status: int, message: str) -> None:
        """Name the HTTP status and what is wrong."""
        super().__init__(message)
        self.http_status = http_status


@dataclass
class Call:
    """A client's call; nobody changes one."""

    path: bytes
    headers: Headers  # for an instance, without pseudo-headers
    timeout: float | None  # seconds
    wants_status: bool  # errors of one request are to end the stream
    wants_ledger: bool  # what each request went through is to be told at the end
    is_answered_whole: bool  # the stream ends at the HTTP side, which gives its client one response
    encoding: bytes  # of compressed messages
    tenant: Tenant | None = None  # who asks, where there are tenants
    blocks: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict, compare=False)  # see `upstream_block`
    is_metered: bool = field(init=False)  # whether its requests count against limits
    is_routed: bool = field(init=False)  # whether each message on the stream is a request of its own
    tenant_name: str = field(init=False)  # empty where there are no tenants
    method: str = field(init=False)  # the short name, as a metric's label; `other` for what KServe does not define

    def __post_init__(self) -> None:
        """Know what each request asks: a property would be computed ten times a request."""
        self.is_metered = self.path in METERED
        self.is_routed = self.path == STREAM_INFER
        self.tenant_name = "" if self.tenant is None else self.tenant.config.name
        self.method = METHOD_NAMES.get(self.path, "other")

    def max_request_bytes(self, limit: int) -> int:
        """Return the largest message that the caller may send: its own limit, or the gateway's."""
        own = self.tenant.config.max_request_bytes if self.tenant is not None else None
        return limit if own is None else min(own, limit)


@lru_cache(maxsize=CACHED_CALLS)
def parse_call(headers: Headers) -> Call:
    """Return what the headers ask for.

    Raises:
        BadCall: this is no gRPC call.
    """
    fields = dict(headers)
    if fields.get(b":method") != b"POST" or not fields.get(b":path", b"").startswith(b"/"):
        raise BadCall(405, "only POST calls of gRPC are served here")
    if not fields.get(b"content-type", b"").startswith(b"application/grpc"):
        raise BadCall(415, "the content type is not application/grpc")
    path = fields[b":path"]
    dropped = CONNECTION_HEADERS | (PER_STREAM_HEADERS if path == STREAM_INFER else set())
    kept = tuple((name, value) for name, value in headers if name[:1] != b":" and name not in dropped)
    return Call(
        path,
        kept,
        parse_timeout(fields.get(b"grpc-timeout")),
        fields.get(STATUS_FLAG, b"").lower() == b"true",
        fields.get(LEDGER_FLAG, b"").lower() == b"true",
        fields.get(WHOLE_FLAG, b"").lower() == b"true",
        fields.get(b"grpc-encoding", b"identity"),
    )


def parse_timeout(value: bytes | None) -> float | None:
    """Return a `grpc-timeout` in seconds.

    Raises:
        BadCall: it is malformed.
    """
    if value is None:
        return None
    digits, unit = value[:-1], value[-1:]
    if unit not in TIMEOUT_UNITS or not digits.isdigit() or len(digits) > MAX_TIMEOUT_DIGITS:
        raise BadCall(400, f"malformed grpc-timeout {value.decode('latin-1')!r}")
    return int(digits) * TIMEOUT_UNITS[unit]


def upstream_headers(call: Call, scheme: bytes, authority: bytes) -> Headers:
    """Return the headers that open the call at an instance."""
    # triton_grpc_error stays here: Triton 2.51 can crash on it
    return (*_pseudo(call.path, scheme, authority), TRAILERS_WANTED, *call.headers)


def upstream_block(call: Call, scheme: bytes, authority: bytes) -> bytes:
    """Return them encoded; equal calls to the same instance are encoded once."""
    block = call.blocks.get((scheme, authority))
    if block is None:
        block = call.blocks[scheme, authority] = encode_headers(upstream_headers(call, scheme, authority))
    return block


def own_block(path: bytes, scheme: bytes, authority: bytes, further: Headers = ()) -> bytes:
    """Return the encoded headers of a call of the gateway's own."""
    return encode_headers((*_pseudo(path, scheme, authority), GRPC_CONTENT, TRAILERS_WANTED, *further))


def _pseudo(path: bytes, scheme: bytes, authority: bytes) -> Headers:
    return ((b":method", b"POST"), (b":scheme", scheme), (b":path", path), (b":authority", authority))
