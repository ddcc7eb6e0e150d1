"""Clients on raw stubs: one stream with requests that a test sends when it likes."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from tests.gateway.protos import pb

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


def request(request_id: str = "", raw: bytes = b"", **wishes: object) -> Any:
    """Return a request; see `backend` for the wishes."""
    made = pb.ModelInferRequest(model_name="llm", id=request_id)
    for name, value in wishes.items():
        made.parameters[name].string_param = str(value)
    if raw:
        made.raw_input_contents.append(raw)
    return made


class Client:
    """A channel of its own."""

    def __init__(self, url: str, *options: tuple[str, int], compression: grpc.Compression | None = None) -> None:
        self.channel = grpc.insecure_channel(url, options=[*OPTIONS, *options], compression=compression)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def stream(self, **options: object) -> "ClientStream":
        return ClientStream(self.stub, **options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


class ClientStream:
    """One `ModelStreamInfer` call."""

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, **options: object) -> None:
        self.requests: queue.Queue[Any] = queue.Queue()
        self.call = stub.ModelStreamInfer(iter(self.requests.get, None), **{"timeout": 20, **options})

    def send(self, *requests: Any) -> None:
        for item in requests:
            self.requests.put(item)

    def half_close(self) -> None:
        self.requests.put(None)

    def read(self) -> Any:
        return next(self.call)

    def rest(self) -> list[Any]:
        self.half_close()
        return list(self.call)

    def cancel(self) -> None:
        self.half_close()
        self.call.cancel()


def indices(responses: list[Any], request_id: str) -> list[int]:
    """Return the indices of one request's responses in the order of their arrival."""
    found: Iterator[Any] = (response.infer_response for response in responses)
    return [item.parameters["index"].int64_param for item in found if item.id == request_id]
