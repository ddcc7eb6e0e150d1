"""What a caller is told who may not go on, in gRPC's words.

Knows codes, messages and `google.rpc.RetryInfo`. Does not know who decides.
"""

import base64

from gateway.safety.admission import Refusal
from gateway.status import Code, Failure
from gateway.wire.headers import Headers
from gateway.wire.protobuf import VARINT, encode_field, encode_varint

RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"
EXHAUSTED = "RESOURCE_EXHAUSTED: "  # in band there is no code but in the text


def exhausted(refusal: Refusal) -> Failure:
    """Return the failure of a request that exceeds a limit."""
    if refusal.retry_after is None:
        return Failure(Code.RESOURCE_EXHAUSTED, EXHAUSTED + refusal.message)
    seconds = f"{refusal.retry_after:.3g}" if refusal.retry_after < 1000 else f"{refusal.retry_after:.0f}"
    message = f"{EXHAUSTED}{refusal.message}; try again in {seconds} s"
    return Failure(Code.RESOURCE_EXHAUSTED, message, notes=retry_notes(message, refusal.retry_after))


def retry_notes(message: str, seconds: float) -> Headers:
    """Return trailing metadata that says when to try again: in seconds, and as gRPC's standard detail."""
    return (
        (b"retry-after", f"{seconds:.3f}".encode()),
        (b"grpc-status-details-bin", base64.b64encode(_status(message, seconds)).rstrip(b"=")),
    )


def _status(message: str, seconds: float) -> bytes:
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    duration = _number(1, whole) + _number(2, nanos)
    detail = encode_field(1, RETRY_INFO) + encode_field(2, encode_field(1, duration))
    return _number(1, Code.RESOURCE_EXHAUSTED) + encode_field(2, message.encode()) + encode_field(3, detail)


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3 | VARINT) + encode_varint(value)
