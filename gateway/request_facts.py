"""What routing wants to know of a request, read from its headers and bytes as far as the policy asks.

Knows names of headers, parameters and prompts. Does not know how instances are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.asked import Asked
from gateway.routing.scorers.prefix import hash_pieces
from gateway.tensors import read_inputs
from gateway.wire import protobuf

if TYPE_CHECKING:
    from gateway.request import Request
    from gateway.routing.policy import Policy

SESSION = b"x-session-id"  # a header, or a string parameter of one request
PLAIN = Asked()
PROMPTS = ("messages", "text_input", "input_ids")


def describe(request: Request, policy: Policy) -> Asked:
    """Return a request as the policy wants to see it; bytes that cannot be read tell nothing."""
    if not (policy.wants_session or policy.marks) or not request.exchange.call.is_routed:
        return Asked(request.tried) if request.tried else PLAIN
    body = request.body()
    session = dict(request.exchange.call.headers).get(SESSION)
    try:
        if policy.wants_session and session is None:
            session = protobuf.string_parameter(body, SESSION)
        prefix = hash_pieces(_prompt(body)) if policy.marks is not None else ()
    except protobuf.MalformedMessage:
        return Asked(request.tried, session)
    return Asked(request.tried, session, prefix)


def _prompt(body: bytes) -> bytes:
    inputs = read_inputs(body)
    return next((inputs[name] for name in PROMPTS if name in inputs), b"")
