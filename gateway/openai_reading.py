"""What an HTTP request says besides OpenAI's fields: headers, and the bytes of its body.

Knows names of headers and limits. Does not know what a body means.
"""

import asyncio

from starlette.requests import Request

from gateway.openai_errors import ApiError

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_SECONDS = 120.0  # that a body may take to arrive
FORWARDED = ("authorization", "x-api-key", "traceparent", "tracestate", "x-ledger", "x-session-id")
REQUEST_ID, MAX_ID_CHARS = "x-request-id", 128
TIMEOUT = "x-request-timeout"  # seconds
MAX_TIMEOUT = 86400.0


def metadata_of(request: Request) -> list[tuple[str, str]]:
    """Return the headers that go on with the request, as gRPC's metadata.

    Raises:
        ApiError: one cannot go on.
    """
    found = [(name, request.headers[name]) for name in FORWARDED if name in request.headers]
    for name, value in found:
        if not (value.isascii() and value.isprintable()):
            raise ApiError(400, f"the header {name} must be printable ASCII")
    return found


def given_id(request: Request) -> str | None:
    """Return what the client calls the request, None where it does not.

    Raises:
        ApiError: it cannot be called so.
    """
    given = request.headers.get(REQUEST_ID)
    if given is not None and not (0 < len(given) <= MAX_ID_CHARS and given.isascii() and given.isprintable()):
        raise ApiError(400, f"the header {REQUEST_ID} must be 1 to {MAX_ID_CHARS} characters of printable ASCII")
    return given


def timeout_of(request: Request) -> float | None:
    """Return within how many seconds there must be an answer, None where the client does not say.

    Raises:
        ApiError: this is no number of seconds, or too many.
    """
    given = request.headers.get(TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ApiError(400, f"the header {TIMEOUT} must be seconds above 0 and up to {MAX_TIMEOUT:g}, not {given!r}")
    return seconds


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes")


async def read_body(request: Request) -> bytes:
    """Return the whole body.

    Raises:
        ApiError: it is too large, comes too slowly or is compressed.
        ClientDisconnect: the client went away.
    """
    raw = bytearray()
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise ApiError(415, f"the body must come as it is, not in the content-encoding {coding!r}")
    _check_size(int(request.headers.get("content-length", "0")))  # the server has seen that it is a number
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                raw += piece
                _check_size(len(raw))
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from error
    return bytes(raw)
