"""KServe gRPC messages of model `llm`, made and read with the raw protobuf classes.

Knows the tensors and their raw bytes. Does not know channels or clocks: what a load generator can afford per message.
"""

import struct
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from scripts.launcher.workload import Arrival

MODEL = "llm"
pb: Any = service_pb2  # its classes are made at run time, out of a type checker's sight


@dataclass(frozen=True, slots=True)
class Progress:
    """What one response says: tokens generated so far, why the stream ends (empty until then), and what is wrong."""

    num_tokens: int
    finish_reason: str
    error: str


def infer_request(arrival: Arrival, request_id: str) -> Any:
    """Return the request message for an arrival."""
    request = pb.ModelInferRequest(model_name=MODEL, id=request_id)
    if isinstance(arrival.prompt, str):
        text = arrival.prompt.encode()
        _add(request, "text_input", "BYTES", 1, struct.pack("<I", len(text)) + text)
    else:
        ids = arrival.prompt
        _add(request, "input_ids", "INT32", len(ids), struct.pack(f"<{len(ids)}i", *ids))
    _add(request, "max_tokens", "INT32", 1, struct.pack("<i", arrival.max_tokens))
    _add(request, "stream", "BOOL", 1, b"\x01")
    if arrival.is_exact:
        _add(request, "ignore_eos", "BOOL", 1, b"\x01")
    return request


def read_progress(message: Any) -> Progress:
    """Return what a response message says; a response without outputs says nothing."""
    response = message.infer_response
    raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    tokens = struct.unpack("<i", raw["completion_tokens"])[0] if "completion_tokens" in raw else 0
    return Progress(tokens, raw.get("finish_reason", b"")[4:].decode(), message.error_message)


def _add(request: Any, name: str, kind: str, size: int, raw: bytes) -> None:
    request.inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=[size]))
    request.raw_input_contents.append(raw)
