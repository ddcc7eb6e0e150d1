"""Stream completions of model `llm` over KServe gRPC, with tritonclient.

Knows the ensemble's tensors. Does not know what serves them: an instance or the gateway.
"""

import json
import queue
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton

MODEL = "llm"
DTYPES: dict[str, Any] = {
    "max_tokens": np.int32,
    "temperature": np.float32,
    "top_p": np.float32,
    "top_k": np.int32,
    "random_seed": np.uint64,
}


class CompletionError(Exception):
    """The server refused or broke a completion; the text says why."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling options; None leaves the choice to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    random_seed: int | None = None

    def given(self) -> dict[str, float]:
        """Return the options that are set, by the name of their tensor."""
        return {name: getattr(self, name) for name in DTYPES if getattr(self, name) is not None}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response of a stream."""

    text: str
    finish_reason: str
    num_tokens: int
    num_prompt_tokens: int


@dataclass(slots=True)
class Answer:
    """What a stream has said so far, with the times of a person watching it."""

    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    text: str = ""
    num_tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Take in one more chunk, now."""
        self.last = time.monotonic()
        if self.first is None and chunk.text:
            self.first = self.last
        self.text += chunk.text
        self.num_tokens = max(self.num_tokens, chunk.num_tokens)

    def summary(self) -> str:
        """Return tokens, time to first token and speed in one line."""
        if self.first is None or self.last is None:
            return "no tokens"
        seconds = self.last - self.first
        speed = f", {(self.num_tokens - 1) / seconds:.0f} tokens/s" if self.num_tokens > 1 and seconds > 0 else ""
        return f"{self.num_tokens} tokens, first after {(self.first - self.started) * 1000:.0f} ms{speed}"


class LlmClient:
    """One connection; one completion at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = triton.InferenceServerClient(url)

    def __enter__(self) -> "LlmClient":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def is_ready(self, model: str = MODEL, timeout: float = 1.0) -> bool:
        """Return whether the server says that it and the model are ready."""
        try:
            return bool(self._client.is_model_ready(model, client_timeout=timeout))
        except triton.InferenceServerException:
            return False

    def stream(self, inputs: Sequence[triton.InferInput], timeout: float | None = None) -> Generator[Chunk, None, None]:
        """Yield the chunks of one completion; leaving early cancels it.

        Args:
            inputs: the request's tensors, from `text_inputs` or `chat_inputs`.
            timeout: most seconds between two chunks; None waits for ever.

        Raises:
            CompletionError: the server refused the request, broke it off, or was silent for too long.
        """
        results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: results.put((result, error)))
        try:
            self._client.async_stream_infer(MODEL, list(inputs))
            reason = ""
            while not reason:
                chunk = _next_chunk(results, timeout)
                reason = chunk.finish_reason
                yield chunk
        except triton.InferenceServerException as error:
            raise CompletionError(error.message()) from None
        finally:
            self._client.stop_stream(cancel_requests=True)


def text_inputs(text: str, sampling: Sampling) -> list[triton.InferInput]:
    """Return the tensors that ask to continue a text."""
    return [_bytes_input("text_input", text), *_sampling_inputs(sampling)]


def chat_inputs(messages: Sequence[dict[str, str]], sampling: Sampling) -> list[triton.InferInput]:
    """Return the tensors that ask for the next message of a chat."""
    return [_bytes_input("messages", json.dumps(list(messages))), *_sampling_inputs(sampling)]


def _bytes_input(name: str, text: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return tensor


def _sampling_inputs(sampling: Sampling) -> list[triton.InferInput]:
    streamed = triton.InferInput("stream", [1], "BOOL")
    streamed.set_data_from_numpy(np.array([True]))
    return [streamed, *(_number_input(name, value) for name, value in sampling.given().items())]


def _number_input(name: str, value: float) -> triton.InferInput:
    array = np.array([value], dtype=DTYPES[name])
    kind = {"i": "INT32", "u": "UINT64", "f": "FP32"}[array.dtype.kind]
    tensor = triton.InferInput(name, [1], kind)
    tensor.set_data_from_numpy(array)
    return tensor


def _next_chunk(results: "queue.SimpleQueue[tuple[Any, Any]]", timeout: float | None) -> Chunk:
    try:
        result, error = results.get(timeout=timeout)
    except queue.Empty:
        raise CompletionError(f"the server was silent for {timeout:g} s") from None
    if error is not None:
        raise CompletionError(error.message())
    return Chunk(
        text=result.as_numpy("text_output")[0].decode(),
        finish_reason=result.as_numpy("finish_reason")[0].decode(),
        num_tokens=int(result.as_numpy("completion_tokens")[0]),
        num_prompt_tokens=int(result.as_numpy("prompt_tokens")[0]),
    )
