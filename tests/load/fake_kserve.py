"""A KServe gRPC server that plays model `llm`: it streams words, and does what the prompt's first word asks.

Knows the tensors of the ensemble. Does not generate anything. Run as a program it prints its port and serves until
its standard input ends.
"""

import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

pb: Any = service_pb2
PAUSE_SECONDS = 0.002


class FakeLlm(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Prompts that begin with `refuse`, `break` or `endless` do so; all others get `max_tokens` words."""

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=request.name == "llm")

    def ModelStreamInfer(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for request in request_iterator:
            raw = dict(zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True))
            prompt = raw.get("text_input", raw.get("messages", b""))[4:].decode()
            limit = struct.unpack("<i", raw["max_tokens"])[0] if "max_tokens" in raw else 8
            yield from self._answer(prompt, limit, context)

    def _answer(self, prompt: str, limit: int, context: Any) -> Iterator[Any]:
        if prompt.startswith("refuse"):
            yield pb.ModelStreamInferResponse(error_message="the prompt is empty")
            return
        if prompt.startswith("break"):
            yield response(prompt, 1, "")
            yield response("", 1, "error")
            return
        index = 0
        while context.is_active() and index < limit:
            index += 0 if prompt.startswith("endless") else 1
            yield response(f"{prompt[:1]}{index} ", index, "length" if index == limit else "")
            time.sleep(PAUSE_SECONDS)


def response(text: str, num_tokens: int, reason: str) -> Any:
    message = pb.ModelStreamInferResponse()
    for name, kind, raw in (
        ("text_output", "BYTES", _string(text)),
        ("finish_reason", "BYTES", _string(reason)),
        ("completion_tokens", "INT32", struct.pack("<i", num_tokens)),
        ("prompt_tokens", "INT32", struct.pack("<i", 3)),
    ):
        message.infer_response.outputs.append(
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=kind, shape=[1])
        )
        message.infer_response.raw_output_contents.append(raw)
    return message


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def start(num_workers: int = 16) -> tuple[Any, int]:
    server = grpc.server(ThreadPoolExecutor(num_workers))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeLlm(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


if __name__ == "__main__":
    fake, own_port = start()
    sys.stdout.write(f"{own_port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    fake.stop(None)
