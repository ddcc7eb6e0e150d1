"""Messages to the engine that are commands and not requests: aborts, and what manages adapters.

Knows the engine's name and its control inputs. Does not know who may send them.

A text of a protobuf message stands in its bytes as it is and in one piece: where the bytes do not hold a name, the
message does not have it. So nearly all requests are told from commands without being read.
"""

from collections.abc import Iterator

from gateway.status import Code, Failure
from gateway.tensors import INPUTS, NAME
from gateway.wire.protobuf import REQUEST_MODEL, MalformedMessage, fields

ENGINE_MODEL = "llm_engine"
ABORT_TENSOR = "abort"
_MODEL = ENGINE_MODEL.encode()
_COMMANDS = frozenset({ABORT_TENSOR.encode(), b"adapters"})


def refuse_command(request: bytes) -> Failure | None:
    """Return why an encoded `ModelInferRequest` may not go on, if it is a command to the engine or looks like one."""
    if _MODEL not in request or not any(name in request for name in _COMMANDS):
        return None
    try:
        if _MODEL not in _texts(request, REQUEST_MODEL):
            return None
        names = {name for tensor in _texts(request, INPUTS) for name in _texts(tensor, NAME)}
    except MalformedMessage as error:
        return Failure(Code.INVALID_ARGUMENT, str(error))
    command = min(names & _COMMANDS, default=None)
    if command is None:
        return None
    message = (
        f"PERMISSION_DENIED: the input {command.decode()} of {ENGINE_MODEL} is not open to clients of this gateway"
    )
    return Failure(Code.PERMISSION_DENIED, message)


def _texts(message: bytes, field: int) -> Iterator[bytes]:
    return (value for number, value in fields(message) if number == field and isinstance(value, bytes))
