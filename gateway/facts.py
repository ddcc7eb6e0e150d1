"""What the engine is told of a request beyond what its client has said, as encoded request parameters.

Knows the parameters that docs/protocol.md names. Does not know how they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.wire.protobuf import MalformedMessage, encode_int_parameter, encode_parameter, int_parameter

if TYPE_CHECKING:
    from gateway.request import Request

DEADLINE = b"deadline_ms"
MAX_DEADLINE_SECONDS = 86400.0  # of a later one the engine need not know: the gateway ends the call itself


def engine_facts(request: Request, key: str, now: float) -> bytes:
    """Return what names this copy of the request, for whom it is, and in how many ms nobody waits for it any more.

    Each copy has a `key` of its own, so that an abort means one of them; all have the seed of the first one's.
    """
    facts = encode_parameter("request_key", key)
    if key != request.key:
        facts += encode_parameter("seed_key", request.key)
    tenant = request.exchange.call.tenant
    if tenant is not None:
        facts += tenant.parameters
    expires_at = request.exchange.expires_at
    milliseconds = None if expires_at is None else _deadline_ms(request, expires_at, now)
    return facts if milliseconds is None else facts + encode_int_parameter(DEADLINE.decode(), milliseconds)


def _deadline_ms(request: Request, expires_at: float, now: float) -> int | None:
    """Return when the call's time is up; None where the client asks the engine for less time by itself."""
    if expires_at - now > MAX_DEADLINE_SECONDS:
        return None
    left = max(1, round(1000 * (expires_at - now)))
    asked = _asked_ms(request.body())
    return None if asked is not None and asked <= left else left


def _asked_ms(body: bytes) -> int | None:
    if DEADLINE not in body:
        return None
    try:
        return int_parameter(body, DEADLINE)
    except MalformedMessage:  # the instance will say so
        return None
