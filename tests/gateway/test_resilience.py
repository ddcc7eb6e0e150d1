"""Clients that leave, instances that die, and the gateway's own end: no request hangs, each ends exactly once."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.wire import frames
from tests.gateway import backend as backend_module
from tests.gateway.backend import Backend
from tests.gateway.cable import Cable
from tests.gateway.clients import Client, ClientStream, indices, request
from tests.gateway.conftest import Start
from tests.gateway.process import GatewayProcess
from tests.gateway.protos import pb
from tests.gateway.proxy_page import ProxyPage
from tests.gateway.wires import HELLO, data_frame, open_frame

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def hold(stream: ClientStream, backends: list[Backend], name: str, chunks: int = 1) -> Backend:
    """Send a request that answers `chunks` times and then hangs; return where it went."""
    stream.send(request(name, chunks=chunks + 1, hang=1, fail_after=chunks))
    for _ in range(chunks):
        assert stream.read().infer_response.id == name
    for backend in backends:
        if backend.wait_for(lambda: any(item.id == name for item in backend.requests), 2.0 / len(backends)):  # noqa: B023
            return backend
    raise AssertionError(f"{name} arrived nowhere")


def test_a_request_that_has_produced_nothing_is_retried_elsewhere(start: Start) -> None:
    gateway, _ = start()
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}", chunks=2, fail="UNAVAILABLE", fail_after=0, only="a") for n in range(2)))
        stream.send(request("other", chunks=2))
        responses = stream.rest()
    assert all(indices(responses, name) == [0, 1] for name in ("r0", "r1", "other"))
    assert not [item for item in responses if item.error_message]
    assert gateway.metric("gateway_retries_total") >= 1


def test_a_server_that_cannot_say_that_it_is_ready_is_not_used_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def abort(_service: Any, _request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "another kind of server")

    monkeypatch.setattr(backend_module._Service, "ServerReady", abort)
    backend = Backend("a", metrics=False)
    gateway = GatewayProcess(backend.flag)
    said = "UNIMPLEMENTED: another kind of server"
    gateway.wait_until(lambda: json.loads(gateway.get("/healthz")[1])["instances"][0]["doubt"] == said)
    assert gateway.health() == {backend.grpc_address: "starting"}
    gateway.stop()
    backend.stop()


def test_a_proxys_page_that_says_unavailable_is_no_answer(tmp_path: Path) -> None:
    page, backend = ProxyPage(), Backend("a", metrics=False)
    config = tmp_path / "gateway.yaml"
    config.write_text("routing: {policy: round_robin}")
    gateway = GatewayProcess(page.address, backend.flag, flags=("--config", str(config)))
    gateway.wait_usable(2)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}", chunks=2) for n in range(2)))
        responses = stream.rest()
    assert page.num_pages
    assert [indices(responses, f"r{n}") for n in range(2)] == [[0, 1], [0, 1]]
    gateway.stop()
    backend.stop()
    page.close()


def test_retries_are_bounded_and_end_in_one_error(start: Start) -> None:
    gateway, backends = start()
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("r", fail="UNAVAILABLE", fail_after=0, message="starting"))
        (answer,) = stream.rest()
    assert (answer.error_message, answer.infer_response.id) == ("starting", "r")
    assert sum(len(backend.requests) for backend in backends) == 3


def test_a_request_that_engines_die_of_takes_no_third_one_down(start: Start) -> None:
    gateway, backends = start()
    died = "UNAVAILABLE: the engine core ended unexpectedly (exit code -9) while the request was running"
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("r", error=died, fail_after=0))
        (answer,) = stream.rest()
    assert answer.error_message.startswith("UNAVAILABLE: 2 instances in a row ended before they answered this request;")
    assert answer.error_message.endswith(died)
    assert sum(len(backend.requests) for backend in backends) == 2


def test_nor_does_one_that_ends_whole_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = [Backend(name, metrics=False) for name in "abc"]
    with contextlib.ExitStack() as stack:
        cables = {backend.name: stack.enter_context(Cable(backend.port)) for backend in backends}

        def die(service: Any, request: Any, context: Any) -> Iterator[Any]:
            cables[service.backend.name].cut()
            yield from ()

        monkeypatch.setattr(backend_module._Service, "_answer", die)
        gateway = GatewayProcess(*(f"127.0.0.1:{cable.port}" for cable in cables.values()))
        gateway.wait_usable(3)
        with Client(gateway.url) as client:
            stream = client.stream()
            stream.send(request("r"))
            (answer,) = stream.rest()
        gateway.stop()
    for backend in backends:
        backend.stop()
    assert "2 instances in a row ended" in answer.error_message
    assert sum(len(backend.requests) for backend in backends) == 2


@pytest.mark.parametrize("text", ["UNAVAILABLE: the core is restarting", "RESOURCE_EXHAUSTED: the queue is full"])
@pytest.mark.parametrize("metadata", [(), (("triton_grpc_error", "true"),)])
def test_an_error_in_band_before_the_first_token_is_retried_elsewhere(
    start: Start, text: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    gateway, backends = start()
    with Client(gateway.url) as client:
        stream = client.stream(metadata=metadata)
        wishes = {"error": f"in ensemble 'llm', {text}", "only": "a", "chunks": 3, "fail_after": 0}
        stream.send(*(request(f"r{number}", **wishes) for number in range(4)))
        responses = stream.rest()
    assert [indices(responses, f"r{number}") for number in range(4)] == [[0, 1, 2]] * 4
    assert not [item.error_message for item in responses if item.error_message]
    assert backends[0].requests
    assert gateway.metric("gateway_retries_total") >= 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("in ensemble 'llm', top_p must be at most 1", grpc.StatusCode.INVALID_ARGUMENT),
        ("in ensemble 'llm', INTERNAL: " + 40_000 * "x", grpc.StatusCode.INTERNAL),
    ],
)
@pytest.mark.parametrize("after", [0, 5])
def test_other_errors_in_band_go_to_the_client_in_the_way_it_asked_for(
    start: Start, text: str, code: grpc.StatusCode, after: int
) -> None:
    gateway, _ = start(1)
    wish = request("r", chunks=9, error=text, fail_after=after)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(wish)
        responses = stream.rest()
        assert [item.error_message for item in responses] == after * [""] + [text]
        stream = client.stream(metadata=(("triton_grpc_error", "true"),))
        stream.send(wish)
        with pytest.raises(grpc.RpcError):
            stream.rest()
        assert stream.call.code() is code
        assert stream.call.details()[:100] == text[:100]
    assert gateway.metric("gateway_requests_total") == 2


@pytest.mark.parametrize("way", ["cancel", "disconnect", "deadline"])
def test_a_client_that_leaves_has_its_requests_reset_and_aborted_by_key(start: Start, way: str) -> None:
    gateway, backends = start()
    client = Client(gateway.url)
    stream = client.stream(timeout=1.0 if way == "deadline" else 20.0)
    backend = hold(stream, backends, "leaver")
    key = backend.requests[-1].parameters["request_key"].string_param
    if way == "cancel":
        stream.cancel()
    elif way == "disconnect":
        client.channel.close()
    else:
        with pytest.raises(grpc.RpcError):
            stream.read()
        assert stream.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert backend.wait_for(lambda: backend.aborted == [key])
    assert backend.wait_for(lambda: "leaver" in backend.ended)
    stream.half_close()
    client.channel.close()
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)
    assert gateway.metric("gateway_aborts_total") == 1


def test_a_heartbeat_that_stops_ends_streams_and_moves_what_has_not_begun(start: Start) -> None:
    gateway, backends = start(2, "--heartbeat-timeout-s", "0.6")
    with Client(gateway.url) as client:
        stream = client.stream()
        victim = hold(stream, backends, "begun")
        (other,) = [backend for backend in backends if backend is not victim]
        other.waiting = 50
        gateway.wait_until(lambda: gateway.metric("gateway_instance_load") >= 50)
        waiting = client.stream()
        assert hold(waiting, [victim], "not begun", chunks=0) is victim
        victim.beating = False
        error = stream.read()
        assert error.infer_response.id == "begun"
        assert "heartbeat stands still" in error.error_message
        assert other.wait_for(lambda: any(item.id == "not begun" for item in other.requests))
        assert gateway.health()[victim.grpc_address] == "dead"
        victim.beating = True
        gateway.wait_usable(2)
        waiting.cancel()
        stream.half_close()


def test_an_instance_that_is_gone_ends_its_streams_and_others_go_on(start: Start) -> None:
    gateway, backends = start()
    with Client(gateway.url) as client:
        stream = client.stream()
        victim = hold(stream, backends, "begun")
        victim.stop()
        error = stream.read()
        assert error.infer_response.id == "begun"
        assert error.error_message
        stream.send(*(request(f"next{n}", chunks=3) for n in range(4)))
        responses = stream.rest()
    assert [len(indices(responses, f"next{n}")) for n in range(4)] == [3, 3, 3, 3]
    gateway.wait_until(lambda: gateway.health()[victim.grpc_address] != "ready")


def test_an_instance_that_comes_back_is_used_again(start: Start) -> None:
    gateway, (backend,) = start(1, "--queue-timeout-s", "10", metrics=False)
    backend.stop()
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("patient", chunks=2))
        gateway.wait_until(lambda: gateway.health()[backend.grpc_address] == "suspect")
        again = Backend("again", metrics=False, port=backend.port)
        assert indices(stream.rest(), "patient") == [0, 1]
        again.stop()


def test_without_a_usable_instance_a_request_waits_and_then_ends_unavailable(start: Start) -> None:
    gateway, (backend,) = start(1, "--queue-timeout-s", "0.3")
    backend.engine_up = 0
    gateway.wait_until(lambda: gateway.get("/healthz")[0] == 503)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(request("w"))
        error = stream.read()
        assert (error.infer_response.id, error.error_message) == ("w", "no instance became usable within 0.3 s")
        with pytest.raises(grpc.RpcError) as caught:
            client.stub.ServerReady(pb.ServerReadyRequest())
        assert caught.value.code() is UNAVAILABLE  # type: ignore[attr-defined]
        backend.engine_up = 1
        gateway.wait_usable(1)
        gateway.wait_until(lambda: gateway.get("/healthz")[0] == 200)
        stream.send(request("x"))
        assert indices(stream.rest(), "x") == [0]


def test_reported_load_steers_requests_away(start: Start) -> None:
    gateway, (first, second) = start()
    first.waiting = 50
    gateway.wait_until(lambda: gateway.metric("gateway_instance_load") >= 50)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}", chunks=2) for n in range(20)))
        assert len(stream.rest()) == 40
    assert (len(first.requests), len(second.requests)) == (0, 20)


def test_a_drained_instance_finishes_and_takes_nothing_new(start: Start) -> None:
    gateway, (first, second) = start()
    assert gateway.get(f"/instances/{first.grpc_address}/drain", "POST")[0] == 200
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}") for n in range(10)))
        assert len(stream.rest()) == 10
    assert (len(first.requests), len(second.requests)) == (0, 10)
    gateway.get(f"/instances/{first.grpc_address}/resume", "POST")
    gateway.wait_usable(2)
    assert gateway.get("/instances/nobody/drain", "POST")[0] == 404


def test_sigterm_lets_open_requests_finish_and_exits_with_0(start: Start) -> None:
    gateway, backends = start()
    with Client(gateway.url) as client:
        stream, idle = client.stream(), client.stream()
        idle.send(request("idle"))
        assert idle.read().infer_response.id == "idle"
        stream.send(request("slow", chunks=5, delay=0.2))
        first = stream.read()
        gateway.terminate()
        with pytest.raises(grpc.RpcError):
            idle.read()
        assert idle.call.code() is UNAVAILABLE
        rest = [stream.read() for _ in range(4)]
        assert indices([first, *rest], "slow") == [0, 1, 2, 3, 4]
        stream.half_close()
        idle.half_close()
        assert stream.call.code() in {grpc.StatusCode.OK, UNAVAILABLE}  # waits for the end before the client leaves
    assert gateway.process.wait(5) == 0
    assert not any(backend.aborted for backend in backends)


def test_a_second_signal_cuts(start: Start) -> None:
    gateway, backends = start()
    with Client(gateway.url) as client:
        stream = client.stream()
        hold(stream, backends, "endless")
        gateway.terminate()
        gateway.wait_until(lambda: '"draining": true' in gateway.get("/healthz")[1])
        gateway.terminate()
        assert gateway.process.wait(5) == 0
        with pytest.raises(grpc.RpcError):
            stream.read()
        stream.half_close()


def test_more_connections_are_opened_when_an_instance_limits_streams(start: Start) -> None:
    gateway, (backend,) = start(1, options=(("grpc.max_concurrent_streams", 3),))
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}", chunks=3, delay=0.05) for n in range(20)))
        responses = stream.rest()
    assert all(indices(responses, f"r{n}") == [0, 1, 2] for n in range(20))
    assert len(backend.requests) == 20


def test_no_request_is_lost_when_an_instance_closes_connections_by_goaway(start: Start) -> None:
    gateway, _ = start(2, options=(("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 5000)))
    with Client(gateway.url) as client:
        stream = client.stream()
        for number in range(60):
            stream.send(request(f"r{number}", chunks=2, delay=0.01))
            assert stream.read().error_message == ""
        assert all(item.error_message == "" for item in stream.rest())


def test_clients_that_stop_reading_hold_little_memory_and_the_backend_waits(start: Start) -> None:
    gateway, backends = start()
    before = gateway.rss()
    host, port = gateway.url.split(":")
    peers = []
    for _ in range(8):
        peer = socket.create_connection((host, int(port)))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        windows = frames.pack_settings({4: frames.MAX_WINDOW}) + frames.pack_window_update(0, 2**30)
        peer.sendall(frames.PREFACE + windows)
        body = request("stuck", chunks=100_000, size=1000).SerializeToString()
        message = b"\0" + len(body).to_bytes(4, "big") + body
        peer.sendall(b"".join(open_frame(i) + data_frame(i, message, 1) for i in range(1, 16, 2)))
        peers.append(peer)
    sent = -1
    settled = threading.Event()
    while sent != sum(backend.sent for backend in backends) or sent == 0:
        sent = sum(backend.sent for backend in backends)
        settled.wait(0.4)  # nothing announces that a backend is blocked; it is when its count stands still
    assert gateway.rss() - before < 60 * 2**20
    assert sent < 64 * 1000
    for peer in peers:
        peer.close()
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)


def test_a_slow_reader_gets_everything_in_the_end(start: Start) -> None:
    gateway, _ = start()
    host, port = gateway.url.split(":")
    body = request("slow", chunks=400, size=1000).SerializeToString()
    message = b"\0" + len(body).to_bytes(4, "big") + body
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(HELLO + open_frame(1) + data_frame(1, message, 1))
        payload, received = 0, b""
        while True:
            received += peer.recv(3000)
            while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3], "big"):
                length, kind = int.from_bytes(received[:3], "big"), received[3]
                received = received[9 + length :]
                if kind == frames.FrameType.DATA:
                    payload += length
                    peer.sendall(frames.pack_window_update(1, length) + frames.pack_window_update(0, length))
                elif kind == frames.FrameType.HEADERS and payload:
                    assert payload > 400 * 1000
                    return
