"""What routing wants to know of a request, read from its headers and bytes as far as the policy asks.

Knows names of headers, parameters and prompts. Does not know how instances are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.asked import Asked
from gateway.routing.scorers.prefix import hash_pieces
from gateway.tensors import LENGTH, read_inputs
from gateway.wire import protobuf

if TYPE_CHECKING:
    from gateway.request import Request
    from gateway.routing.policy import Policy

SESSION = b"x-session-id"  # a header, or a string parameter of one request
PLAIN = Asked()
TEXTS, TOKENS = ("messages", "text_input"), "input_ids"


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
    """Return the prompt, of a text without the length in front: prompts of any length share pieces."""
    inputs = read_inputs(body)
    texts = [inputs[name][LENGTH.size :] for name in TEXTS if name in inputs]
    return texts[0] if texts else inputs.get(TOKENS, b"")
