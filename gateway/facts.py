"""What the engine is told of a request beyond what its client has said, as encoded request parameters.

Knows the parameters that docs/protocol.md names. Does not know how they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.wire.protobuf import encode_int_parameter, encode_parameter

if TYPE_CHECKING:
    from gateway.request import Request

MAX_DEADLINE_SECONDS = 86400.0  # of a later one the engine need not know: the gateway ends the call itself


def engine_facts(request: Request, now: float) -> bytes:
    """Return the request's key, for whom it is, and in how many milliseconds nobody waits for it any more."""
    exchange = request.exchange
    facts = encode_parameter("request_key", request.key)
    tenant = exchange.call.tenant
    if tenant is not None:
        facts += tenant.parameters
    if exchange.expires_at is not None and exchange.expires_at - now <= MAX_DEADLINE_SECONDS:
        facts += encode_int_parameter("deadline_ms", max(1, round(1000 * (exchange.expires_at - now))))
    return facts
