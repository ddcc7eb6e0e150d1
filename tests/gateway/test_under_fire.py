"""Many streams while instances die and clients leave: every request ends exactly once."""

import random
import socket
import threading

import grpc
import pytest

from gateway.wire import frames
from gateway.wire.messages import MessageReader, frame_message
from tests.gateway.clients import Client, indices, request
from tests.gateway.conftest import Start
from tests.gateway.protos import pb
from tests.gateway.wires import data_frame, open_frame

NUM_STREAMS, REQUESTS_EACH, CHUNKS = 12, 8, 20


class Caller(threading.Thread):
    """One client with a stream of requests; some leave in the middle."""

    def __init__(self, url: str, number: int, leaves: bool) -> None:
        super().__init__()
        self.url, self.number, self.leaves = url, number, leaves
        self.responses = []
        self.code: grpc.StatusCode | None = None

    def run(self) -> None:
        rng = random.Random(self.number)
        with Client(self.url) as client:
            stream = client.stream()
            for index in range(REQUESTS_EACH):
                size = rng.choice([1, 200, 5000, 30_000])
                stream.send(
                    request(f"{self.number}-{index}", chunks=CHUNKS, size=size, delay=rng.choice([0.001, 0.02]))
                )
            if self.leaves:
                self.responses.append(stream.read())
                stream.cancel()
                return
            self.responses = stream.rest()
            self.code = stream.call.code()


def test_every_request_ends_once_while_instances_die_and_clients_leave(start: Start) -> None:
    gateway, backends = start(3, "--queue-timeout-s", "2")
    callers = [Caller(gateway.url, number, leaves=number % 4 == 3) for number in range(NUM_STREAMS)]
    for caller in callers:
        caller.start()
    assert backends[0].wait_for(lambda: len(backends[0].requests) >= 10)
    backends[0].stop()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    failed = 0
    for caller in callers:
        if caller.leaves:
            continue
        assert caller.code is grpc.StatusCode.OK
        for index in range(REQUESTS_EACH):
            name = f"{caller.number}-{index}"
            mine = [item for item in caller.responses if item.infer_response.id == name]
            errors = [item for item in mine if item.error_message]
            assert len(errors) <= 1
            failed += len(errors)
            expected = list(range(len(mine) - 1 if errors else CHUNKS))
            assert indices([item for item in mine if not item.error_message], name) == expected
            assert not errors or mine[-1] is errors[0]
    assert failed < NUM_STREAMS * REQUESTS_EACH / 2
    gateway.wait_until(lambda: gateway.metric("gateway_in_flight_requests") == 0)


@pytest.mark.parametrize("window", [1, 100, 5000, 100_000])
def test_answers_meet_only_at_message_boundaries_whatever_the_clients_window(start: Start, window: int) -> None:
    gateway, _ = start()
    sizes = {f"r{number}": [0, 30, 3000, 50_000][number % 4] // (50 if window == 1 else 1) for number in range(12)}
    bodies = [request(name, chunks=6, size=size).SerializeToString() for name, size in sizes.items()]
    sent = b"".join(data_frame(1, frame_message(body)) for body in bodies) + data_frame(1, b"", frames.END_STREAM)
    reader = MessageReader(1 << 20)
    responses = []
    host, port = gateway.url.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(frames.PREFACE + frames.pack_settings({4: window}) + open_frame(1) + sent)
        for kind, payload in read_frames(peer):
            if kind == frames.FrameType.DATA and payload:
                assert len(payload) <= window
                responses += [pb.ModelStreamInferResponse.FromString(body) for _, body in reader.feed(payload)]
                peer.sendall(frames.pack_window_update(1, len(payload)) + frames.pack_window_update(0, len(payload)))
    assert not reader.partial
    for name, size in sizes.items():
        assert indices(responses, name) == list(range(6))
        raw = [item.infer_response.raw_output_contents[0] for item in responses if item.infer_response.id == name]
        assert [len(part) for part in raw] == 6 * [size]


def read_frames(peer: socket.socket):
    """Yield (type, payload) up to the trailers that end stream 1."""
    received = b""
    while True:
        part = peer.recv(65_536)
        assert part
        received += part
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3]):
            end = 9 + int.from_bytes(received[:3])
            kind, flags, payload, received = received[3], received[4], received[9:end], received[end:]
            yield kind, payload
            if kind == frames.FrameType.HEADERS and flags & frames.END_STREAM:
                return
