"""How an error of ours is said in Triton's words.

Knows gRPC code names and the fewer codes a Triton model can answer with. Does not know Triton's objects.

Invariant: the message begins with the gRPC code's name and a colon, save for INVALID_ARGUMENT: errors of a Triton
stream arrive as text only, and by this text the gateway knows them.
"""

from engine.errors import EngineError, grpc_code

TRITON_CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAVAILABLE": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
    "NOT_FOUND": "NOT_FOUND",
    "UNIMPLEMENTED": "UNSUPPORTED",
    "ALREADY_EXISTS": "ALREADY_EXISTS",
}
MAX_MESSAGE_CHARS = 4096
NEAREST = {"RESOURCE_EXHAUSTED": "UNAVAILABLE", "DEADLINE_EXCEEDED": "UNAVAILABLE", "CANCELLED": "UNAVAILABLE"}


def triton_error(error: EngineError) -> tuple[str, str]:
    """Return the name of the Triton error code nearest to `error`, and the message to go with it."""
    return triton_code(grpc_code(error), str(error))


def triton_code(code: str, message: str) -> tuple[str, str]:
    """Return Triton's code for a gRPC code name, and the message to go with it, without the middle of a very long one.

    What is no Unicode is escaped.
    """
    if len(message) > MAX_MESSAGE_CHARS:  # it quotes what was sent
        half = MAX_MESSAGE_CHARS // 2
        message = f"{message[:half]} ... {message[-half:]}"
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    text = message if code == "INVALID_ARGUMENT" else f"{code}: {message}"
    return TRITON_CODES.get(code) or NEAREST.get(code, "INTERNAL"), text
