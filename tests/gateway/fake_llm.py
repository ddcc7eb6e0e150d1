"""A stand-in for the model `llm` behind a fake backend: its tokens are a function of (request id, position)."""

import hashlib
import random
import struct
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from tests.gateway.backend import Backend
from tests.gateway.protos import pb

CHUNK_SECONDS = 0.002


def token_at(request_id: str, index: int) -> int:
    """Return the token that an undisturbed run has there."""
    return int.from_bytes(hashlib.blake2b(f"{request_id}/{index}".encode(), digest_size=2).digest())


def tokens_of(request_id: str, num_tokens: int) -> list[int]:
    """Return the completion."""
    return [token_at(request_id, index) for index in range(num_tokens)]


def make_request(request_id: str, num_tokens: int, typed: bool = False, model: str = "llm", **wishes: object) -> Any:
    """Return a request for a completion; `typed` puts its input into typed contents."""
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, value in wishes.items():
        request.parameters[name].string_param = str(value)
    tensor = request.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    if typed:
        tensor.contents.int_contents.append(num_tokens)
    else:
        request.raw_input_contents.append(struct.pack("<i", num_tokens))
    return request


def read_inputs(request: Any) -> dict[str, list[int]]:
    """Return every INT32 input, by Triton's rule for raw contents."""
    raws = iter(request.raw_input_contents)
    found: dict[str, list[int]] = {}
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            assert not request.raw_input_contents, "contents must not be specified when using raw_input_contents"
            found[tensor.name] = list(tensor.contents.int_contents)
        else:
            found[tensor.name] = [value for (value,) in struct.iter_unpack("<i", next(raws))]
        assert tensor.shape == [len(found[tensor.name])]
    assert next(raws, None) is None
    return found


def make_response(request_id: str, first: int, token_ids: list[int], finish_reason: str) -> Any:
    """Return one chunk."""
    response = pb.ModelInferResponse(id=request_id, model_name="llm", model_version="1")
    contents = {
        "text_output": pack_text("".join(f"<{token}>" for token in token_ids)),
        "token_ids": struct.pack(f"<{len(token_ids)}i", *token_ids),
        "finish_reason": pack_text(finish_reason),
        "token_index": struct.pack("<i", first),
    }
    for name, raw in contents.items():
        size = len(token_ids) if name == "token_ids" else 1
        response.outputs.add(name=name, datatype="BYTES" if raw[4:] else "INT32", shape=[size])
        response.raw_output_contents.append(raw)
    return pb.ModelStreamInferResponse(infer_response=response)


def pack_text(text: str) -> bytes:
    """Return a BYTES tensor of one element."""
    return struct.pack("<I", len(text.encode())) + text.encode()


def answer(service: Any, request: Any, context: Any) -> Iterator[Any]:
    """Generate like the engine: from where the request says, in chunks of one to three tokens.

    The parameter `die_after` ends the stream with an error of the engine core once, after so many tokens in all;
    `silent_after` has it hang there.
    """
    backend: Backend = service.backend
    inputs = read_inputs(request)
    wish = {name: value.string_param for name, value in request.parameters.items()}
    position = resumed = len(inputs.get("resume_token_ids", []))
    assert inputs.get("resume_token_ids", []) == tokens_of(request.id, position)
    (end,) = inputs["max_tokens"]
    sizes = random.Random(request.id + str(position))
    while position < end:
        if not resumed and position >= int(wish.get("die_after", end)):
            yield pb.ModelStreamInferResponse(
                error_message="in ensemble 'llm', UNAVAILABLE: the engine core ended unexpectedly",
                infer_response=pb.ModelInferResponse(id=request.id),
            )
            return
        if not resumed and position >= int(wish.get("silent_after", end)):
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait(20)
            return
        if backend.stopped.wait(CHUNK_SECONDS):
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        size = min(sizes.randint(1, 3), end - position)
        token_ids = [token_at(request.id, index) for index in range(position, position + size)]
        backend.sent += size
        backend.note()
        yield make_response(request.id, position, token_ids, "length" if position + size == end else "")
        position += size


class Completion:
    """What a client has of one request."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reasons: list[str] = []
        self.errors: list[str] = []

    def take(self, message: Any) -> None:
        """Take one response, asserting that it continues the one before."""
        if message.error_message:
            self.errors.append(message.error_message)
            return
        response = message.infer_response
        raw = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
        assert not self.finish_reasons
        assert struct.unpack("<i", raw["token_index"]) == (len(self.token_ids),)
        self.token_ids += [value for (value,) in struct.iter_unpack("<i", raw["token_ids"])]
        self.text += raw["text_output"][4:].decode()
        if reason := raw["finish_reason"][4:].decode():
            self.finish_reasons.append(reason)
