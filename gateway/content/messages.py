"""Requests and responses with some of their text changed.

Knows which tensors hold text, and how messages are put together again. Does not know what is changed or why.
"""

import json
from collections.abc import Callable
from typing import Any

from gateway.tensors import (
    CONTENTS,
    INPUTS,
    OUTPUTS,
    RAW_INPUTS,
    RAW_OUTPUTS,
    STREAM_RESPONSE,
    describe,
    pack_texts,
    texts_of,
)  # fmt: skip
from gateway.wire.protobuf import REQUEST_MODEL, VARINT, MalformedMessage, encode_field, encode_varint, fields

BYTES_CONTENTS = 8
CHECKED_OUTPUTS = frozenset({  # what a checked answer may hold; the others could spell out the text in tokens
    "text_output", "finish_reason", "sequence_index", "token_index", "prompt_tokens", "completion_tokens",
    "cached_tokens", "queue_seconds", "ttft_seconds", "e2e_seconds", "detokenize_seconds", "clock_ns",
})  # fmt: skip
FILTERED = b"content_filter"
Change = Callable[[str], str]


def model_of(request: bytes) -> bytes:
    """Return the model that an encoded request names last, which is the one that counts.

    Raises:
        MalformedMessage: it is no message.
    """
    names = [value for number, value in fields(request) if number == REQUEST_MODEL and isinstance(value, bytes)]
    return names[-1] if names else b""


def change_prompt(request: bytes, change: Change) -> bytes:
    """Return an encoded `ModelInferRequest` with the text of its prompt changed.

    Raises:
        MalformedMessage: it is no message, or a text is no UTF-8 or, of messages, no JSON.
    """
    parts = list(fields(request))
    waiting = [name for number, value in parts if number == INPUTS and (name := _raw_name(value)) is not None]
    names = iter(waiting)
    made: list[bytes] = []
    for number, value in parts:
        if number == RAW_INPUTS and isinstance(value, bytes):
            made.append(encode_field(number, _changed(next(names, ""), value, change)))
        elif number == INPUTS and isinstance(value, bytes):
            made.append(encode_field(number, _change_typed(value, change)))
        else:
            made.append(_encode(number, value))
    return b"".join(made)


def texts_of_prompt(request: bytes) -> list[str]:
    """Return every text of the prompt of an encoded `ModelInferRequest`.

    Raises:
        MalformedMessage: as `change_prompt`.
    """
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    change_prompt(request, note)
    return texts


def change_answer(message: bytes, change: Callable[[dict[str, bytes]], dict[str, bytes]], hides: bool) -> bytes:
    """Return an encoded `ModelStreamInferResponse` with its outputs changed, and only harmless ones where `hides`.

    Raises:
        MalformedMessage: it is no message.
    """
    made: list[bytes] = []
    for number, value in fields(message):
        if number == STREAM_RESPONSE and isinstance(value, bytes):
            made.append(encode_field(number, _change_response(value, change, hides)))
        else:
            made.append(_encode(number, value))
    return b"".join(made)


def _change_response(response: bytes, change: Callable[[dict[str, bytes]], dict[str, bytes]], hides: bool) -> bytes:
    parts = list(fields(response))
    outputs = [value for number, value in parts if number == OUTPUTS and isinstance(value, bytes)]
    raw = [value for number, value in parts if number == RAW_OUTPUTS and isinstance(value, bytes)]
    named = {describe(output)[0]: (output, content) for output, content in zip(outputs, raw, strict=False)}
    changed = change({name: content for name, (_, content) in named.items()})
    kept = [name for name in named if not hides or name in CHECKED_OUTPUTS]
    others = [_encode(number, value) for number, value in parts if number not in {OUTPUTS, RAW_OUTPUTS}]
    described = [encode_field(OUTPUTS, named[name][0]) for name in kept]
    return b"".join([*others, *described, *(encode_field(RAW_OUTPUTS, changed[name]) for name in kept)])


def _raw_name(tensor: bytes | int) -> str | None:
    name, contents = describe(tensor) if isinstance(tensor, bytes) else ("", b"")
    return name if contents is None else None


def _change_typed(tensor: bytes, change: Change) -> bytes:
    name, contents = describe(tensor)
    if contents is None or name not in {"text_input", "messages"}:
        return tensor
    texts = texts_of(_changed(name, contents, change))
    packed = b"".join(encode_field(BYTES_CONTENTS, text) for text in texts)
    others = [_encode(number, value) for number, value in fields(tensor) if number != CONTENTS]
    return b"".join([*others, encode_field(CONTENTS, packed)])


def _changed(name: str, raw: bytes, change: Change) -> bytes:
    if name not in {"text_input", "messages"}:
        return raw
    one = change if name == "text_input" else lambda text: json.dumps(_change_strings(json.loads(text), change))
    try:
        return pack_texts([one(text.decode()).encode() for text in texts_of(raw)])
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{name} cannot be read: {error}") from error


def _change_strings(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_change_strings(item, change) for item in value]
    return {key: _change_strings(item, change) for key, item in value.items()} if isinstance(value, dict) else value


def _encode(number: int, value: bytes | int) -> bytes:
    if isinstance(value, bytes):
        return encode_field(number, value)
    return encode_varint(number << 3 | VARINT) + encode_varint(value)
