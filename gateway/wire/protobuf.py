"""The few protobuf fields that the gateway writes and reads by hand (KServe v2, `inference.proto`).

Messages concatenate: bytes appended to an encoded message are more of its fields. So facts are added to a request
without parsing it. Does not know schemas beyond the field numbers below.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

MAX_INT64 = 2**63 - 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10
CACHED_HEADS = 256
ONE_BYTE, SMALL_NUMBER = 0x80, 16  # below these a length or tag is one byte

REQUEST_MODEL, REQUEST_ID, REQUEST_PARAMETERS, REQUEST_INPUTS, REQUEST_RAW_INPUTS = 1, 3, 4, 5, 7
TENSOR_NAME, TENSOR_DATATYPE, TENSOR_SHAPE, TENSOR_CONTENTS = 1, 2, 3, 5
CONTENTS_INT = 2
PARAMETER_INT, PARAMETER_STRING = 2, 3
STREAM_ERROR, STREAM_RESPONSE, RESPONSE_ID = 1, 2, 3
STREAM_ERROR_TAG = STREAM_ERROR << 3 | BYTES  # serializers write fields in order: with it an error message begins


class MalformedMessage(Exception):
    """Bytes that are no protobuf message."""


def encode_varint(value: int) -> bytes:
    """Return an unsigned varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field: string, bytes or message."""
    size = len(value)
    if size < ONE_BYTE and number < SMALL_NUMBER:
        return bytes((number << 3 | BYTES, size)) + value
    return encode_varint(number << 3 | BYTES) + encode_varint(size) + value


def encode_parameter(name: str, value: str) -> bytes:
    """Return one entry of `ModelInferRequest.parameters` with a string value, ready to be appended to a request."""
    text = value.encode()
    return _parameter_head(name, len(text)) + text


def encode_int_parameter(name: str, value: int) -> bytes:
    """Return such an entry with an int64 value, which must not be negative."""
    return _parameter(name, encode_varint(PARAMETER_INT << 3 | VARINT) + encode_varint(value))


@lru_cache(maxsize=CACHED_HEADS)
def _parameter_head(name: str, size: int) -> bytes:
    """Return all of a string parameter's entry that stands before its value of `size` bytes, which comes last."""
    whole = _parameter(name, encode_field(PARAMETER_STRING, b"\0" * size))
    return whole[: len(whole) - size]


def _parameter(name: str, parameter: bytes) -> bytes:
    return encode_field(REQUEST_PARAMETERS, encode_field(1, name.encode()) + encode_field(2, parameter))


def encode_abort(model: str, tensor: str, key: str) -> bytes:
    """Return a `ModelInferRequest` with one BYTES[1] input that holds `key`."""
    raw = key.encode()
    return (
        encode_field(REQUEST_MODEL, model.encode())
        + encode_field(REQUEST_INPUTS, describe_tensor(tensor.encode(), b"BYTES", 1))
        + encode_field(REQUEST_RAW_INPUTS, len(raw).to_bytes(4, "little") + raw)
    )


def describe_tensor(name: bytes, datatype: bytes, size: int) -> bytes:
    """Return an `InferInputTensor` of one dimension, without contents."""
    shape = encode_field(TENSOR_SHAPE, encode_varint(size))
    return encode_field(TENSOR_NAME, name) + encode_field(TENSOR_DATATYPE, datatype) + shape


def encode_int32_input(name: bytes, values: Sequence[int], typed: bool) -> bytes:
    """Return one INT32 input of a `ModelInferRequest`, with typed contents or raw ones.

    Args:
        name: the tensor's name.
        values: not negative.
        typed: put the values into the input itself, not into `raw_input_contents`.
    """
    description = describe_tensor(name, b"INT32", len(values))
    if typed:
        packed = encode_field(CONTENTS_INT, b"".join(map(encode_varint, values)))
        return encode_field(REQUEST_INPUTS, description + encode_field(TENSOR_CONTENTS, packed))
    raw = struct.pack(f"<{len(values)}i", *values)
    return encode_field(REQUEST_INPUTS, description) + encode_field(REQUEST_RAW_INPUTS, raw)


def encode_stream_error(message: str, request_id: bytes) -> bytes:
    """Return a `ModelStreamInferResponse` that reports an error of one request."""
    response = encode_field(RESPONSE_ID, request_id) if request_id else b""
    return encode_field(STREAM_ERROR, message.encode()) + encode_field(STREAM_RESPONSE, response)


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the (number, value) pairs of a message, nested ones undecoded.

    Raises:
        MalformedMessage: the bytes end early or use an unknown wire type.
    """
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = (data[pos], pos + 1) if data[pos] < ONE_BYTE else _varint(data, pos)
        if tag & 7 == VARINT:
            value, pos = _varint(data, pos)
            yield tag >> 3, value
            continue
        if tag & 7 == BYTES and pos < end and data[pos] < ONE_BYTE:  # as of most fields
            size = data[pos]
            pos += 1
        else:
            size, pos = _size(data, pos, tag & 7)
        if pos + size > end:
            raise MalformedMessage(f"field {tag >> 3} ends after the message")
        yield tag >> 3, data[pos : pos + size]
        pos += size


def varints(data: bytes) -> list[int]:
    """Return the elements of a packed field.

    Raises:
        MalformedMessage: the bytes end within one.
    """
    found: list[int] = []
    pos = 0
    while pos < len(data):
        value, pos = _varint(data, pos)
        found.append(value)
    return found


def string_parameter(request: bytes, name: bytes) -> bytes | None:
    """Return a string parameter of an encoded `ModelInferRequest`, or None where it has none of this name.

    Raises:
        MalformedMessage: it is no message.
    """
    value = _find_parameter(request, name, PARAMETER_STRING)
    return value if isinstance(value, bytes) else None


def int_parameter(request: bytes, name: bytes) -> int | None:
    """Return an int64 parameter in the same way.

    Raises:
        MalformedMessage: it is no message.
    """
    value = _find_parameter(request, name, PARAMETER_INT)
    if not isinstance(value, int):
        return None
    return value if value <= MAX_INT64 else value - 2**64


def _find_parameter(request: bytes, name: bytes, kind: int) -> bytes | int | None:
    """Return the last value of that kind that a request gives to a parameter."""
    found = None
    for number, entry in fields(request):
        if number != REQUEST_PARAMETERS or not isinstance(entry, bytes):
            continue
        parts = dict(fields(entry))
        value = parts.get(2)
        if parts.get(1) == name and isinstance(value, bytes):
            found = dict(fields(value)).get(kind, found)
    return found


def request_id(data: bytes) -> bytes:
    """Return the `id` of an encoded `ModelInferRequest`; empty where it has none or cannot be read."""
    found = b""
    try:
        for number, value in fields(data):
            if number == REQUEST_ID and isinstance(value, bytes):
                found = value
    except MalformedMessage:
        return b""
    return found


def _size(data: bytes, pos: int, wire_type: int) -> tuple[int, int]:
    if wire_type == BYTES:
        return _varint(data, pos)
    if wire_type in {FIXED64, FIXED32}:
        return (8 if wire_type == FIXED64 else 4), pos
    raise MalformedMessage(f"wire type {wire_type}")


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for index in range(MAX_VARINT_BYTES):
        if pos + index >= len(data):
            raise MalformedMessage("a varint ends after the message")
        byte = data[pos + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, pos + index + 1
    raise MalformedMessage("a varint of more than ten bytes")
