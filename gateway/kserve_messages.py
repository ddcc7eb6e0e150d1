"""What the HTTP side asks of the model and what the model answers, in KServe's messages.

Knows the model's tensors. Does not know streams, HTTP or OpenAI.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.tensors import INT32, pack_texts, read_outputs, texts_of
from gateway.wire.protobuf import (
    REQUEST_ID,
    REQUEST_INPUTS,
    REQUEST_MODEL,
    REQUEST_RAW_INPUTS,
    MalformedMessage,
    describe_tensor,
    encode_field,
)

MODEL = "llm"
ENDED_EARLY = {"cancelled": "CANCELLED", "deadline": "DEADLINE_EXCEEDED", "error": "INTERNAL"}


class KserveError(Exception):
    """A request that did not end well; `code` is the name of a gRPC status."""

    def __init__(self, code: str, message: str, retry_after: float | None = None, may_retry: bool = True) -> None:
        """Keep all; `retry_after` is in seconds, and without `may_retry` trying again is of no use."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.may_retry = may_retry


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input."""

    name: str
    datatype: str
    raw: bytes
    size: int = 1


@dataclass(slots=True)
class Chunk:
    """What one response says; `finish_reason` is empty until the last, which alone surely tells `cached_tokens`."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    index: int = 0  # which of the request's sequences
    prompt: int = 0  # which of several prompts, see `openai_prompts`
    log_probs: tuple[float, ...] = ()
    token_bytes: tuple[bytes, ...] = ()  # of each logged token
    top_log_probs: tuple[float, ...] = ()  # so many in the place of each token
    top_token_bytes: tuple[bytes, ...] = ()
    embedding: bytes = b""  # fp32, little-endian


STREAMED = Tensor("stream", "BOOL", b"\x01")


def text_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """Return a BYTES tensor."""
    return Tensor(name, "BYTES", pack_texts([text.encode() for text in texts]), len(texts))


def int_tensor(name: str, values: Sequence[int]) -> Tensor:
    """Return an INT32 tensor."""
    return Tensor(name, "INT32", struct.pack(f"<{len(values)}i", *values), len(values))


def prompt_tensors(given: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a tensor for each prompt: `given` is one text, one prompt's token ids, or several of either."""
    items: Any = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [
        text_tensor("text_input", [item]) if isinstance(item, str) else int_tensor("input_ids", item) for item in items
    ]


def encode_request(tensors: Sequence[Tensor], request_id: str = "") -> bytes:
    """Return the `ModelInferRequest` that asks the model for a stream of answers, with an id if it is to have one."""
    inputs = (*tensors, STREAMED)
    described = (describe_tensor(each.name.encode(), each.datatype.encode(), each.size) for each in inputs)
    return b"".join(
        [
            encode_field(REQUEST_MODEL, MODEL.encode()),
            encode_field(REQUEST_ID, request_id.encode()) if request_id else b"",
            *(encode_field(REQUEST_INPUTS, description) for description in described),
            *(encode_field(REQUEST_RAW_INPUTS, each.raw) for each in inputs),
        ]
    )


def read_chunk(message: bytes) -> Chunk | None:
    """Return what an encoded `ModelStreamInferResponse` says; None of an empty one, such as Triton's last.

    Raises:
        KserveError: the request ended early, or this is no answer of the model's.
    """
    try:
        raw = read_outputs(message)
        return _chunk(raw) if "text_output" in raw else None
    except (MalformedMessage, KeyError, struct.error, UnicodeDecodeError) as error:
        raise KserveError("INTERNAL", f"the model's answer cannot be read: {error!r}") from error


def _chunk(raw: dict[str, bytes]) -> Chunk:
    finish_reason = raw["finish_reason"][4:].decode()
    if finish_reason in ENDED_EARLY:
        raise KserveError(ENDED_EARLY[finish_reason], f"the request ended early: {finish_reason}")
    chunk = Chunk(
        raw["text_output"][4:].decode(),
        finish_reason,
        _number(raw, "prompt_tokens"),
        _number(raw, "completion_tokens"),
        _number(raw, "cached_tokens"),
        _number(raw, "sequence_index"),
    )
    if "log_probs" in raw:
        chunk.log_probs, chunk.token_bytes = _logged(raw, "log_probs", "token_bytes")
        chunk.top_log_probs, chunk.top_token_bytes = _logged(raw, "top_log_probs", "top_token_bytes")
    chunk.embedding = raw.get("embedding", b"")
    return chunk


def _number(raw: dict[str, bytes], name: str) -> int:
    content = raw.get(name)
    return 0 if content is None else INT32.unpack(content)[0]


def _logged(raw: dict[str, bytes], log_probs: str, token_bytes: str) -> tuple[tuple[float, ...], tuple[bytes, ...]]:
    values = raw.get(log_probs, b"")
    return struct.unpack(f"<{len(values) // 4}f", values), tuple(texts_of(raw.get(token_bytes, b"")))
