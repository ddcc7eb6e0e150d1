"""Spans of the gateway: children of the client's, parents of Triton's, exported with the request's facts."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import ConfigError, make_config
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def spans_of(bodies: list[bytes]) -> list[Any]:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    requests = [service.ExportTraceServiceRequest.FromString(body) for body in bodies]
    return [s for made in requests for r in made.resource_spans for scope in r.scope_spans for s in scope.spans]


def test_a_span_joins_the_clients_trace_and_hands_it_on(collector: tuple[str, list[bytes]], tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump({"observe": {"tracing": {"endpoint": collector[0]}}}))
    backend = Backend("a")
    gateway = GatewayProcess(backend.flag, flags=("--config", str(config)))
    gateway.wait_usable(1)
    with Client(gateway.url) as client:
        for metadata in ((("traceparent", f"00-{TRACE}-{PARENT}-01"),), None):
            stream = client.stream(metadata=metadata)
            stream.send(request("1"))
            stream.rest()
    gateway.stop()  # exports what is waiting
    backend.stop()
    joined, own = spans_of(collector[1])
    assert (joined.trace_id.hex(), joined.parent_span_id.hex()) == (TRACE, PARENT)
    assert backend.metadata[0]["traceparent"] == f"00-{TRACE}-{joined.span_id.hex()}-01"
    assert own.trace_id.hex() in backend.metadata[1]["traceparent"]
    assert {item.key: item.value.string_value for item in joined.attributes}["scalellm.outcome"] == "ok"
    assert [event.name for event in joined.events] == ["gateway_in", "routed", "gateway_out"]
    assert joined.start_time_unix_nano < joined.end_time_unix_nano


def test_tracing_without_opentelemetry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="not installed"):
        make_config({"instances": [{"grpc": "h:1"}], "observe": {"tracing": {"endpoint": "http://h/v1/traces"}}})
