"""Peers that keep a connection waiting: what is decided, and that a real gateway does it."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import ConfigError, make_config
from gateway.patience import Patience, Verdict, Vigil
from gateway.wire import frames
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import FrameType
from gateway.wire.headers import encode_headers
from gateway.wire.messages import frame_message
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess
from tests.gateway.wires import HELLO, REQUEST, data_frame, open_frame, server

PATIENCE = Patience(preface_s=10, frame_s=20, message_s=120, keepalive_s=60, keepalive_timeout_s=5, idle_s=300)


def judge(vigil: Vigil, now: float, greeted: bool = True, since: float | None = None, streams: int = 1) -> Verdict:
    return vigil.judge(now, greeted, since, streams)


def test_a_peer_without_preface_is_cut_when_its_time_is_over() -> None:
    vigil = Vigil(PATIENCE, 100.0, 100.0)
    assert judge(vigil, 110.0, greeted=False) is Verdict.NOTHING
    assert judge(vigil, 110.1, greeted=False) is Verdict.CUT
    assert "preface" in vigil.reason


def test_a_trickled_frame_is_cut_although_bytes_keep_coming() -> None:
    vigil = Vigil(PATIENCE, 0.0, 0.0)
    for now in range(1, 21):
        vigil.read_at = float(now)
        assert judge(vigil, float(now), since=0.0) is Verdict.NOTHING
    assert judge(vigil, 20.5, since=0.0) is Verdict.CUT


def test_silence_brings_one_ping_and_then_the_end_unless_anything_arrives() -> None:
    vigil = Vigil(PATIENCE, 0.0, 0.0)
    assert judge(vigil, 61.0) is Verdict.PING
    assert judge(vigil, 65.0) is Verdict.NOTHING
    vigil.read_at = 65.5
    assert judge(vigil, 70.0) is Verdict.NOTHING
    assert judge(vigil, 126.0) is Verdict.PING
    assert judge(vigil, 131.5) is Verdict.CUT


def test_a_connection_without_streams_retires_and_one_with_streams_does_not() -> None:
    vigil = Vigil(Patience(keepalive_s=None, idle_s=300), 0.0, 0.0)
    assert judge(vigil, 1000.0) is Verdict.NOTHING
    assert judge(vigil, 1001.0, streams=0) is Verdict.NOTHING
    assert judge(vigil, 1300.0, streams=0) is Verdict.NOTHING
    assert judge(vigil, 1302.0, streams=0) is Verdict.DRAIN


def test_without_limits_nothing_is_ever_done() -> None:
    vigil = Vigil(Patience(None, None, None, None, 1.0, None), 0.0, 0.0)
    assert judge(vigil, 1e9, greeted=False, since=0.0, streams=0) is Verdict.NOTHING


@pytest.mark.parametrize("step", [1, 100])
def test_a_connection_says_since_when_a_frame_or_block_is_incomplete(step: int) -> None:
    connection = server()
    connection.feed(HELLO, 1.0)
    assert connection.incomplete_since is None
    block = frames.pack_headers(1, encode_headers(REQUEST), False, 40)
    for now, start in enumerate(range(0, len(block) - 1, step), 2):
        connection.feed(block[start : min(start + step, len(block) - 1)], float(now))
        assert connection.incomplete_since == 2.0
    connection.feed(block[-1:], 1000.0)
    assert connection.incomplete_since is None
    connection.feed(data_frame(1, b"x") + b"\0", 1001.0)
    assert connection.incomplete_since == 1001.0
    connection.feed(data_frame(1, b"x")[1:] + b"\0", 1002.0)
    assert connection.incomplete_since == 1002.0


@pytest.mark.parametrize("fields", [{"preface_s": 0}, {"frame_s": -1}, {"unheard_of": 1}])
def test_a_time_that_cannot_be_kept_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="patience"):
        make_config({"instances": [{"grpc": "127.0.0.1:1"}], "patience": fields})


@pytest.mark.parametrize("fields", [{"max_streams": 0}, {"resets": {"burst": 0, "per_second": 1}}, {"unheard_of": 1}])
def test_a_limit_that_nobody_can_keep_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="limits"):
        make_config({"instances": [{"grpc": "127.0.0.1:1"}], "limits": fields})


SLOW = {
    "nothing at all": (b"", "no preface and settings within 0.3 s"),
    "half a preface": (frames.PREFACE[:9], "no preface and settings within 0.3 s"),
    "a preface without settings": (frames.PREFACE, "no preface and settings within 0.3 s"),
    "half a frame": (HELLO + open_frame(1)[:-4], "a frame or header block not complete within 0.4 s"),
    "a header block without end": (
        HELLO + frames.pack_frame(FrameType.HEADERS, 0, 1, b""), "a frame or header block not complete within 0.4 s"),
    "no answer to a ping": (HELLO, "no answer to a ping within 0.5 s"),
}  # fmt: skip


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory):
    """Return a gateway with little patience and few streams, and its backend."""
    backend = Backend("a")
    config = tmp_path_factory.mktemp("strict") / "config.json"
    times = {"preface_s": 0.3, "frame_s": 0.4, "message_s": 0.5, "keepalive_s": 0.6, "keepalive_timeout_s": 0.5}
    config.write_text(json.dumps({"patience": times, "limits": {"max_streams": 5}}))
    gateway = GatewayProcess(backend.flag, flags=("--config", str(config)))
    gateway.wait_usable(1)
    yield gateway, backend
    gateway.stop()
    backend.stop()


Strict = tuple[GatewayProcess, Backend]


def connect(gateway: GatewayProcess) -> socket.socket:
    host, port = gateway.url.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_until(peer: socket.socket, found: Callable[[bytes], bool]) -> bytes:
    """Read until the bytes satisfy `found` or the connection ends."""
    received = b""
    while not found(received):
        part = peer.recv(65_536)
        if not part:
            break
        received += part
    return received


@pytest.mark.parametrize("name", SLOW)
def test_a_peer_that_keeps_the_gateway_waiting_is_told_why_and_cut(strict: Strict, name: str) -> None:
    data, reason = SLOW[name]
    with connect(strict[0]) as peer:
        peer.sendall(data)
        received = read_until(peer, lambda _: False)
    assert reason.encode() in received


def test_a_trickling_peer_is_cut_too(strict: Strict) -> None:
    with connect(strict[0]) as peer:
        peer.sendall(HELLO)
        begin = time.monotonic()
        with pytest.raises(OSError):
            for byte in 100 * open_frame(1)[:-1]:
                peer.sendall(bytes([byte]))
                time.sleep(0.05)  # the slowness is what is tested
    assert time.monotonic() - begin < 4


def test_a_request_that_never_ends_gets_deadline_exceeded_and_the_connection_goes_on(strict: Strict) -> None:
    unary = tuple(
        (name, value.replace(b"ModelStreamInfer", b"ModelInfer") if name == b":path" else value)
        for name, value in REQUEST
    )
    part = frame_message(b"x" * 100)[:50]
    with connect(strict[0]) as peer:
        peer.sendall(HELLO + open_frame(1) + data_frame(1, part) + open_frame(3, headers=unary) + data_frame(3, part))
        received = read_until(peer, lambda got: got.count(b"grpc-status\x014") == 2)
        assert received.count(b"the request was not complete within 0.5 s") == 2
        assert b"grpc-status\x014" in received
        peer.sendall(frames.pack_ping(b"12345678"))
        assert b"12345678" in read_until(peer, lambda got: b"12345678" in got)


def test_an_open_stream_without_requests_is_no_slow_request(strict: Strict) -> None:
    with Client(strict[0].url) as client:
        stream = client.stream()
        stream.send(request("one"))
        assert stream.read().infer_response.id == "one"
        time.sleep(0.8)  # longer than the limit of a request: nothing must happen
        stream.send(request("two"))
        assert [item.infer_response.id for item in stream.rest()] == ["two"]


def test_a_connection_too_many_is_turned_away_and_one_that_leaves_makes_room(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_connections": 3}))
    gateway = GatewayProcess("127.0.0.1:1", flags=("--config", str(config)))
    held = [connect(gateway) for _ in range(3)]
    for peer in held:
        peer.sendall(HELLO)
        read_until(peer, lambda got: len(got) >= 40)
    with connect(gateway) as peer:
        received = read_until(peer, lambda _: False)
    assert b"more than 3 connections" in received
    assert frames.pack_goaway(0, ErrorCode.ENHANCE_YOUR_CALM)[9:] in received
    held[0].close()

    def is_served() -> bool:
        with connect(gateway) as peer:
            peer.sendall(HELLO + frames.pack_ping(b"12345678"))
            return b"12345678" in read_until(peer, lambda got: b"12345678" in got)

    gateway.wait_until(is_served)
    for peer in held:
        peer.close()
    gateway.stop()


def test_a_client_waits_for_a_free_stream_within_the_limit(strict: Strict) -> None:
    with Client(strict[0].url) as client:
        streams = [client.stream() for _ in range(12)]
        for number, stream in enumerate(streams):
            stream.send(request(f"s{number}", chunks=3, delay=0.01))
            stream.half_close()
        assert [len(list(stream.call)) for stream in streams] == 12 * [3]


def test_config_files_can_set_every_limit(tmp_path: Path) -> None:
    config = make_config({
        "instances": [{"grpc": "unix:/run/triton.sock", "patience": {"keepalive_s": 300}}],
        "limits": {"max_header_list_bytes": 9000, "pings": {"burst": 5, "per_second": 0.5}},
        "patience": {"idle_s": 600, "keepalive_s": None},
        "max_connections": 7,
    })  # fmt: skip
    assert (config.limits.pings.burst, config.limits.max_header_list_bytes) == (5, 9000)
    assert (config.patience.keepalive_s, config.patience.idle_s, config.max_connections) == (None, 600, 7)
    assert config.instances[0].patience.keepalive_s == 300
