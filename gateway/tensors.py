"""Named tensors of encoded KServe requests and responses, as raw bytes.

Knows the field numbers of `inference.proto`. Does not know what a tensor means. The hot path never comes here: a
message is read only where a limit, a check or a record asks for it.
"""

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct

from gateway.wire.protobuf import MalformedMessage, fields, varints

NAME, CONTENTS = 1, 5
INPUTS, RAW_INPUTS = 5, 7
OUTPUTS, RAW_OUTPUTS = 5, 6
STREAM_RESPONSE = 2
INT_CONTENTS, BYTES_CONTENTS = 2, 8
LENGTH = Struct("<I")
INT32 = Struct("<i")
FLOAT32 = Struct("<f")
CLOCK = Struct("<2q")
CACHED_DESCRIPTIONS, CACHED_BYTES = 256, 64  # an output is described by the same few bytes in every response


def read_inputs(request: bytes) -> dict[str, bytes]:
    """Return the inputs of an encoded `ModelInferRequest`, raw ones and typed ones alike.

    Raises:
        MalformedMessage: it is not one.
    """
    typed, names, raw = _split(request, INPUTS, RAW_INPUTS)
    return typed | dict(zip(names, raw, strict=False))


def read_outputs(message: bytes) -> dict[str, bytes]:
    """Return the outputs of an encoded `ModelStreamInferResponse`; none of an error.

    Raises:
        MalformedMessage: it is not one.
    """
    for number, value in fields(message):
        if number == STREAM_RESPONSE and isinstance(value, bytes):
            _, names, raw = _split(value, OUTPUTS, RAW_OUTPUTS)
            return dict(zip(names, raw, strict=False))
    return {}


def int_of(tensors: dict[str, bytes], name: str) -> int | None:
    """Return an INT32 of one element, or None where there is none."""
    raw = tensors.get(name)
    return INT32.unpack(raw)[0] if raw is not None and len(raw) == INT32.size else None


def float_of(tensors: dict[str, bytes], name: str) -> float | None:
    """Return an FP32 of one element, or None where there is none."""
    raw = tensors.get(name)
    return FLOAT32.unpack(raw)[0] if raw is not None and len(raw) == FLOAT32.size else None


def clock_of(tensors: dict[str, bytes]) -> tuple[int, int] | None:
    """Return the two instants of `clock_ns`, or None where there is none."""
    raw = tensors.get("clock_ns")
    return CLOCK.unpack(raw) if raw is not None and len(raw) == CLOCK.size else None


def texts_of(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Raises:
        MalformedMessage: a length does not fit.
    """
    found: list[bytes] = []
    pos = 0
    while pos < len(raw):
        if pos + LENGTH.size > len(raw):
            raise MalformedMessage("a BYTES tensor ends within a length")
        size = LENGTH.unpack_from(raw, pos)[0]
        pos += LENGTH.size
        if pos + size > len(raw):
            raise MalformedMessage("a BYTES tensor ends within an element")
        found.append(raw[pos : pos + size])
        pos += size
    return found


def pack_texts(texts: list[bytes]) -> bytes:
    """Return the raw form of a BYTES tensor."""
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)


def _split(message: bytes, tensor_field: int, raw_field: int) -> tuple[dict[str, bytes], list[str], list[bytes]]:
    """Return (tensors with contents of their own, names of the others, raw contents, which are for those in order)."""
    typed: dict[str, bytes] = {}
    names: list[str] = []
    raw: list[bytes] = []
    for number, value in fields(message):
        if not isinstance(value, bytes):
            continue
        if number == raw_field:
            raw.append(value)
        elif number == tensor_field:
            name, contents = _known(value) if len(value) <= CACHED_BYTES else describe(value)
            if contents is None:
                names.append(name)
            else:
                typed[name] = contents
    return typed, names, raw


def describe(tensor: bytes) -> tuple[str, bytes | None]:
    """Return the name of an encoded tensor, and its contents in raw form where it holds them itself."""
    name, contents = "", None
    for number, value in fields(tensor):
        if number == NAME and isinstance(value, bytes):
            name = value.decode("utf-8", "replace")
        elif number == CONTENTS and isinstance(value, bytes):
            contents = b"".join(_raw_contents(value))
    return name, contents


_known = lru_cache(CACHED_DESCRIPTIONS)(describe)


def _raw_contents(contents: bytes) -> Iterator[bytes]:
    for number, value in fields(contents):
        if number == BYTES_CONTENTS and isinstance(value, bytes):
            yield LENGTH.pack(len(value)) + value
        elif number == INT_CONTENTS:
            numbers = varints(value) if isinstance(value, bytes) else [value]
            yield b"".join(LENGTH.pack(item & 0xFFFFFFFF) for item in numbers)
