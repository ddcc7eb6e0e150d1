"""A small KServe backend with a metrics port, whose behaviour a test can change while it runs.

A request says what it wants by string parameters: `chunks` responses of `size` bytes each, `delay` seconds between
them, `fail` with a code name or `error` with a text (in band, as Triton does) after `fail_after` responses, `hang` for
ever after them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from tests.gateway.protos import pb

MODELS = ("preprocessing", "llm_engine", "postprocessing")
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


class Backend:
    """One fake instance."""

    def __init__(
        self,
        name: str,
        metrics: bool = True,
        port: int = 0,
        options: tuple[tuple[str, int], ...] = (),
        address: str | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.name = name
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.ended: list[str] = []
        self.sent = 0
        self.ready = True
        self.beating = True
        self.engine_up = 1
        self.waiting = 0
        self.beat = 0
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(160), options=[*OPTIONS, *options])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self.server)
        listening = address or f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self.server.add_insecure_port(listening)
        else:
            self.port = self.server.add_secure_port(listening, credentials)
        self._address = address
        self.server.start()
        self.http = _metrics_server(self) if metrics else None

    @property
    def grpc_address(self) -> str:
        return self._address or f"127.0.0.1:{self.port}"

    @property
    def flag(self) -> str:
        return self.grpc_address + (f",127.0.0.1:{self.http.server_port}" if self.http else "")

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, timeout)

    def note(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def metrics_text(self) -> str:
        self.beat += self.beating
        lines = [f"llm_waiting_requests {self.waiting}", "llm_running_requests 0", f"llm_engine_up {self.engine_up}"]
        lines += [f'llm_heartbeat{{model="{model}",version="1"}} {self.beat}' for model in MODELS]
        return "\n".join(["# HELP llm_waiting_requests x", *lines]) + "\n"

    def stop(self) -> None:
        stopping = self.server.stop(0)
        self.stopped.set()
        stopping.wait()
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def ServerLive(self, request, context):  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):  # noqa: N802
        return pb.ServerReadyResponse(ready=self.backend.ready)

    def ModelReady(self, request, context):  # noqa: N802
        return pb.ModelReadyResponse(ready=request.name == "llm")

    def ServerMetadata(self, request, context):  # noqa: N802
        return pb.ServerMetadataResponse(name=self.backend.name, version="1")

    def ModelMetadata(self, request, context):  # noqa: N802
        if request.name != "llm":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found: ü")
        return pb.ModelMetadataResponse(name=request.name, platform="ensemble")

    def ModelConfig(self, request, context):  # noqa: N802
        return pb.ModelConfigResponse()

    def ModelStatistics(self, request, context):  # noqa: N802
        return pb.ModelStatisticsResponse()

    def ModelInfer(self, request, context):  # noqa: N802
        context.set_trailing_metadata((("served-by", self.backend.name),))
        return pb.ModelInferResponse(
            model_name=request.model_name, id=request.id, raw_output_contents=request.raw_input_contents
        )

    def ModelStreamInfer(self, request_iterator, context):  # noqa: N802
        for request in request_iterator:
            if request.model_name == "llm_engine":
                self.backend.aborted.append(request.raw_input_contents[0][4:].decode())
                self.backend.note()
                yield pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
                continue
            self.backend.metadata.append(dict(context.invocation_metadata()))
            self.backend.requests.append(request)
            context.add_callback(partial(self._ended, request.id))
            self.backend.note()
            yield from self._answer(request, context)

    def _ended(self, request_id: str) -> None:
        self.backend.ended.append(request_id)
        self.backend.note()

    def _answer(self, request: Any, context) -> Iterator[Any]:
        wish = {key: value.string_param for key, value in request.parameters.items()}
        fails = ("fail" in wish or "error" in wish) and wish.get("only", self.backend.name) == self.backend.name
        fail_after = int(wish.get("fail_after", "0")) if fails or "hang" in wish else None
        for index in range(int(wish.get("chunks", "1"))):
            if index == fail_after:
                break
            if "delay" in wish:
                self.backend.stopped.wait(float(wish["delay"]))
            response = pb.ModelInferResponse(id=request.id, model_name=self.backend.name)
            response.parameters["index"].int64_param = index
            response.raw_output_contents.append(bytes([index % 256]) * int(wish.get("size", "8")))
            self.backend.sent += 1
            yield pb.ModelStreamInferResponse(infer_response=response)
        if fails and "error" in wish:
            yield pb.ModelStreamInferResponse(
                error_message=wish["error"], infer_response=pb.ModelInferResponse(id=request.id)
            )
        elif fails:
            context.abort(grpc.StatusCode[wish["fail"]], wish.get("message", "it broke"))
        while "hang" in wish and context.is_active() and not self.backend.stopped.is_set():
            time.sleep(0.02)


def _metrics_server(backend: Backend) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = backend.metrics_text().encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server
