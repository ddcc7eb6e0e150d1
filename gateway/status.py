"""gRPC statuses: codes, messages, and how they travel in headers.

Knows the code table and percent-encoding. Does not know streams.
"""

from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import quote, unquote

from gateway.wire.faults import ErrorCode
from gateway.wire.headers import Headers

GRPC_CONTENT = (b"content-type", b"application/grpc")
HTTP_OK = (b":status", b"200")
RESPONSE_HEADERS: Headers = (HTTP_OK, GRPC_CONTENT)
OK_TRAILERS: Headers = ((b"grpc-status", b"0"),)
NOT_AGAIN = (b"grpc-retry-pushback-ms", b"-1")  # gRPC's word (A6, client retries) for what no retry can change
MESSAGE_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
MAX_MESSAGE_CHARS = 1024  # in trailers: clients refuse header lists of more than 8 KiB
UNAVAILABLE_HTTP = {b"429", b"502", b"503", b"504"}


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODES = {str(int(code)).encode(): code for code in Code}
RETRYABLE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.RESOURCE_EXHAUSTED,  # that instance's queue is full
        Code.CANCELLED,  # by an instance that is going down: what a client cancels is no longer listened to
    }
)
INSTANCES_OWN = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS})
RESET_NAMES = {int(code): code.name for code in ErrorCode}
RESET_CODES: dict[int, Code] = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request or stream did not end well."""

    code: Code
    message: str
    trailers: Headers = ()  # the instance's own words, where there are any
    notes: Headers = ()  # trailing metadata of the gateway's own, such as when to try again
    is_answer: bool = True  # false where the connection or the instance ended before there was one
    is_death: bool = False  # the instance, or the engine in it, ended while it had the request

    @property
    def is_retryable(self) -> bool:
        """Whether another instance may do better."""
        return self.code in RETRYABLE

    @property
    def is_instances_own(self) -> bool:
        """Whether it tells something about the instance, and not about the request or the load."""
        return self.code in INSTANCES_OWN


def trailers_of(code: Code, message: str = "") -> Headers:
    """Return the trailers that end a stream with this status."""
    status = (b"grpc-status", str(int(code)).encode())
    if not message:
        return (status,)
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[:MAX_MESSAGE_CHARS]}... ({len(message)} characters)"
    return (status, (b"grpc-message", quote(message, safe=MESSAGE_SAFE).encode()))


def failure_of_trailers(headers: Headers) -> Failure | None:
    """Return what trailers report, or None for OK."""
    if headers == OK_TRAILERS:
        return None
    fields = dict(headers)
    status = fields.get(b"grpc-status")
    if status is None:
        return failure_of_http(headers)
    if status == b"0":
        return None
    code = CODES.get(status, Code.UNKNOWN)
    return Failure(code, unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace")), headers)


def failure_of_http(headers: Headers) -> Failure:
    """Return what the headers of a response that is not gRPC's mean; none of them is for a client."""
    status = dict(headers).get(b":status", b"200")
    code = Code.UNAVAILABLE if status in UNAVAILABLE_HTTP else Code.UNKNOWN
    return Failure(code, f"the instance answered HTTP status {status.decode('latin-1')} without a gRPC status")


def failure_of_reset(code: int, instance: str) -> Failure:
    """Return what an instance's RST_STREAM means."""
    name = RESET_NAMES.get(code, str(code))
    return Failure(RESET_CODES.get(code, Code.INTERNAL), f"instance {instance} reset the stream: {name}")
