"""A KServe client of the gateway's own gRPC port, for the HTTP side.

Knows tensors, one stream per request, and the errors of a stream. Does not know HTTP or who asks.
gRPC is imported and connected at the first request, so that a gateway which only relays does not pay for it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.status import NOT_AGAIN
from gateway.tensors import texts_of

MODEL = "llm"
METADATA = (("triton_grpc_error", "true"),)  # to the gateway, which ends the stream with the status an error means
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one response says; `finish_reason` is empty until the last, which alone surely tells `cached_tokens`."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    index: int = 0  # which of the request's sequences
    prompt: int = 0  # which of several prompts, see `openai_prompts`
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    top_token_ids: tuple[int, ...] = ()  # so many in the place of each token
    top_log_probs: tuple[float, ...] = ()
    token_bytes: tuple[bytes, ...] = ()  # of each logged token
    top_token_bytes: tuple[bytes, ...] = ()
    embedding: bytes = b""  # fp32, little-endian


def text_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """Return a BYTES tensor."""
    encoded = [text.encode() for text in texts]
    return Tensor(name, "BYTES", b"".join(struct.pack("<I", len(item)) + item for item in encoded), len(encoded))


def int_tensor(name: str, values: Sequence[int]) -> Tensor:
    """Return an INT32 tensor."""
    return Tensor(name, "INT32", struct.pack(f"<{len(values)}i", *values), len(values))


def prompt_tensors(given: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a tensor for each prompt: `given` is one text, one prompt's token ids, or several of either."""
    items: Any = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [
        text_tensor("text_input", [item]) if isinstance(item, str) else int_tensor("input_ids", item) for item in items
    ]


class Completion:
    """One stream in flight."""

    def __init__(self, call: Any, failure: type[Exception]) -> None:
        """Take a started call and the exception that it fails with."""
        self.ledger: dict[str, Any] | None = None  # known once all chunks have been read, where it was asked for
        self._call = call
        self._failure = failure

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the responses, the one with a finish reason last, and wait for the end of the stream.

        Raises:
            KserveError: the request failed or was ended by somebody else.
        """
        has_ended = False
        try:
            async for message in self._call:
                for chunk in _read(message):
                    yield chunk
                    has_ended |= bool(chunk.finish_reason)
            told = dict(await self._call.trailing_metadata() or ()).get("x-ledger")
        except self._failure as error:
            raise _explain(error) from error
        if not has_ended:
            raise KserveError("INTERNAL", "the stream ended without a last response")
        self.ledger = None if told is None else json.loads(told)[-1]

    def cancel(self) -> None:
        """End it; without effect where it has ended."""
        self._call.cancel()


class KserveClient:
    """Opens streams over one lazily made channel."""

    def __init__(self, address: str) -> None:
        """Name the server; nothing is connected yet."""
        self._address = address
        self._lock = asyncio.Lock()
        self._channel: Any = None
        self._stub: Any = None
        self._pb: Any = None
        self._grpc: Any = None

    async def open(
        self, tensors: Sequence[Tensor], metadata: Sequence[tuple[str, str]] = (), timeout: float | None = None
    ) -> Completion:
        """Send one request to the model, with further metadata, to be answered within `timeout` seconds."""
        stub = await self._connected()
        request = self._pb.ModelInferRequest(model_name=MODEL)
        for tensor in (*tensors, Tensor("stream", "BOOL", b"\x01")):
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[tensor.size])
            request.raw_input_contents.append(tensor.raw)
        return Completion(
            stub.ModelStreamInfer([request], metadata=(*METADATA, *metadata), timeout=timeout), self._grpc.RpcError
        )

    async def close(self) -> None:
        """Close the channel, if there is one."""
        if self._channel is not None:
            await self._channel.close()

    async def _connected(self) -> Any:
        async with self._lock:
            if self._stub is None:
                await self._connect()
        return self._stub

    async def _connect(self) -> None:
        triton = await asyncio.to_thread(importlib.import_module, "tritonclient.grpc")
        import grpc.aio

        self._grpc, self._pb = grpc, triton.service_pb2
        self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        self._stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


def _read(message: Any) -> list[Chunk]:
    response = message.infer_response
    raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    if "text_output" not in raw:
        return []  # an empty response, such as Triton's last one
    finish_reason = raw["finish_reason"][4:].decode()
    if finish_reason in ENDED_EARLY:
        raise KserveError(ENDED_EARLY[finish_reason], f"the request ended early: {finish_reason}")
    counts = [
        struct.unpack("<i", raw.get(f"{name}_tokens", bytes(4)))[0] for name in ("prompt", "completion", "cached")
    ]
    return [
        Chunk(
            raw["text_output"][4:].decode(),
            finish_reason,
            *counts,
            index=struct.unpack("<i", raw.get("sequence_index", bytes(4)))[0],
            token_ids=_numbers(raw, "token_ids", "i"),
            log_probs=_numbers(raw, "log_probs", "f"),
            top_token_ids=_numbers(raw, "top_token_ids", "i"),
            top_log_probs=_numbers(raw, "top_log_probs", "f"),
            token_bytes=tuple(texts_of(raw.get("token_bytes", b""))),
            top_token_bytes=tuple(texts_of(raw.get("top_token_bytes", b""))),
            embedding=raw.get("embedding", b""),
        )
    ]


def _numbers(raw: dict[str, bytes], name: str, kind: str) -> tuple[Any, ...]:
    content = raw.get(name, b"")
    return struct.unpack(f"<{len(content) // 4}{kind}", content)


def _explain(error: Any) -> KserveError:
    told = dict(error.trailing_metadata() or ())
    retry_after = None if "retry-after" not in told else float(told["retry-after"])
    name, value = (part.decode() for part in NOT_AGAIN)
    return KserveError(error.code().name, error.details() or "", retry_after, told.get(name) != value)
