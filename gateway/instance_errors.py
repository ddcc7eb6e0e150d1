"""What an error means that an instance sends in band, where only its text tells the code.

Knows the forms of our models' messages (docs/protocol.md, "Errors") and of Triton's own. Does not know streams.

Triton 2.51 can end with an assertion when it is asked for statuses instead (`triton_grpc_error`), so the gateway never
asks: it reads the text here and gives the client the status where the client wants one.
"""

import re

from gateway.status import Code, Failure
from gateway.wire import protobuf

ENSEMBLE = re.compile(r"(?:in ensemble '[^']*', )+")
DEATH = re.compile(r"the engine core ended unexpectedly .*while the request was running")
OWN_FORM = re.compile(rf"({'|'.join(code.name for code in Code if code is not Code.OK)}): ")
TRITON_FORMS: tuple[tuple[re.Pattern[str], Code], ...] = (
    (re.compile(r"Stub process .*is not healthy"), Code.UNAVAILABLE),
    (re.compile(r"Request for unknown model.* (has no available versions|is not at ready state)"), Code.UNAVAILABLE),
    (re.compile(r"Request for unknown model"), Code.NOT_FOUND),
    (re.compile(r"Server is stopping|Server not ready|.*has stopped accepting new inference"), Code.UNAVAILABLE),
    (re.compile(r"Exceeds maximum queue size"), Code.RESOURCE_EXHAUSTED),
    (re.compile(r"Request timeout expired"), Code.DEADLINE_EXCEEDED),
    (re.compile(r"Failed to process the request"), Code.INTERNAL),
)


def failure_of_text(text: str) -> Failure:
    """Return the failure that an in-band error means; its message is the text as it came.

    The code is the one the text names, else that of the first of Triton's forms it has, else INVALID_ARGUMENT: bad
    input is what our models and Triton report in words of many kinds and without a code.
    """
    start = found.end() if (found := ENSEMBLE.match(text)) else 0
    if named := OWN_FORM.match(text, start):
        return Failure(Code[named[1]], text, is_death=DEATH.match(text, named.end()) is not None)
    return Failure(next((code for form, code in TRITON_FORMS if form.match(text, start)), Code.INVALID_ARGUMENT), text)


def failure_of_message(message: bytes) -> Failure:
    """Return the failure that an encoded `ModelStreamInferResponse` with an error reports."""
    try:
        values = [value for number, value in protobuf.fields(message) if number == protobuf.STREAM_ERROR]
    except protobuf.MalformedMessage as error:
        return Failure(Code.INTERNAL, f"the instance sent a malformed error: {error}")
    return failure_of_text(values[-1].decode("utf-8", "replace") if values and isinstance(values[-1], bytes) else "")
