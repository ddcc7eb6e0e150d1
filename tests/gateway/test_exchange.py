"""Answers of several requests on one client stream, without sockets: what leaves, and in which order."""

from typing import Any

from gateway.call import parse_call
from gateway.exchange import Exchange
from gateway.request import Request
from gateway.status import Code, Failure
from gateway.wire import frames
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.frames import FrameType
from gateway.wire.messages import frame_message
from tests.gateway.protos import pb
from tests.gateway.wires import HELLO, REQUEST, data_frame, open_frame, server, written


class Desk:
    """A link and a dispatcher in one, which notes what it is told."""

    max_request_bytes = 1000

    def __init__(self) -> None:
        self.connection = server()
        self.loop: Any = self
        self.num_buffered = 0
        self.submitted: list[Request] = []
        self.cancelled_requests: list[Request] = []
        (headers,) = self.connection.feed(HELLO + frames.pack_window_update(0, 10**6) + open_frame(1))
        assert isinstance(headers, HeadersReceived)
        self.connection.feed(frames.pack_window_update(1, 10**6))
        desk: Any = self
        self.exchange = Exchange(desk, headers.stream, parse_call(REQUEST), desk)
        written(self.connection)

    def time(self) -> float:
        return 0.0

    def note_buffered(self, exchange: Exchange, size: int) -> None:
        self.num_buffered = size

    def forget(self, exchange: Exchange) -> None:
        pass

    def exchange_ended(self, exchange: Exchange) -> None:
        pass

    def delivered(self, num_messages: int, num_bytes: int) -> None:
        pass

    def submit(self, request: Request) -> None:
        self.submitted.append(request)

    def cancelled(self, request: Request) -> None:
        self.cancelled_requests.append(request)

    def receive(self, *bodies: bytes, end_stream: bool = False) -> list[Request]:
        payload = b"".join(map(frame_message, bodies))
        (event,) = self.connection.feed(data_frame(1, payload, int(end_stream)))
        assert isinstance(event, DataReceived)
        self.exchange.on_data(event)
        return self.submitted[-len(bodies) :]

    def data(self) -> bytes:
        return b"".join(payload for kind, _, _, payload in written(self.connection) if kind == FrameType.DATA)


def test_pieces_keep_their_order_while_a_large_message_holds_the_stream() -> None:
    desk = Desk()
    one, two = desk.receive(b"1", b"2")
    desk.exchange.deliver(one, [(b"A1", False)], 0)
    desk.exchange.deliver(two, [(b"b1", True), (b"b2", False)], 1)
    desk.exchange.deliver(two, [(b"b3", True), (b"b4", True)], 2)
    assert desk.data() == b"A1"
    desk.exchange.deliver(one, [(b"A2", True), (b"a3", True)], 2)
    assert desk.data() == b"A2a3b1b2b3b4"


def test_two_large_messages_do_not_mix_and_small_ones_wait_in_turn() -> None:
    desk = Desk()
    one, two, three = desk.receive(b"1", b"2", b"3")
    desk.exchange.deliver(one, [(b"A1", False)], 0)
    desk.exchange.deliver(two, [(b"B1", False)], 0)
    desk.exchange.deliver(three, [(b"c1", True)], 1)
    desk.exchange.deliver(two, [(b"B2", True)], 1)
    desk.exchange.deliver(three, [(b"c2", True)], 1)
    desk.exchange.deliver(one, [(b"A2", True)], 1)
    assert desk.data() == b"A1A2B1B2c1c2"


def test_an_error_waits_for_the_message_under_way_and_the_end_waits_for_both() -> None:
    desk = Desk()
    body = pb.ModelInferRequest(id="two").SerializeToString()
    one, two = desk.receive(b"1", body, end_stream=True)
    desk.exchange.deliver(one, [(b"A1", False)], 0)
    desk.exchange.failed(two, Failure(Code.INTERNAL, "broken"))
    desk.exchange.deliver(one, [(b"A2", True)], 1)
    assert not desk.exchange.ended
    data = desk.data()
    assert data[:4] == b"A1A2"
    error = pb.ModelStreamInferResponse.FromString(data[9:])
    assert (error.error_message, error.infer_response.id) == ("broken", "two")
    desk.exchange.succeeded(one, ())
    assert desk.exchange.ended


def test_what_was_held_of_a_message_that_gets_no_end_is_dropped_before_the_error() -> None:
    desk = Desk()
    body = pb.ModelInferRequest(id="two").SerializeToString()
    one, two, three = desk.receive(b"1", body, b"3")
    desk.exchange.deliver(one, [(b"A1", False)], 0)
    desk.exchange.deliver(two, [(b"b1", True), (b"B2", False)], 1)
    desk.exchange.deliver(three, [(b"c1", True)], 1)
    desk.exchange.deliver(two, [(b"B3", False)], 0)
    desk.exchange.failed(two, Failure(Code.UNAVAILABLE, "gone"))
    desk.exchange.deliver(one, [(b"A2", True)], 1)
    data = desk.data()
    assert data[:8] == b"A1A2b1c1"
    error = pb.ModelStreamInferResponse.FromString(data[13:])
    assert (error.error_message, error.infer_response.id) == ("gone", "two")


def test_a_request_lost_within_a_large_message_ends_the_stream_and_cancels_the_others() -> None:
    desk = Desk()
    one, two = desk.receive(b"1", b"2")
    desk.exchange.deliver(one, [(b"A1", False)], 0)
    desk.exchange.failed(one, Failure(Code.UNAVAILABLE, "gone"))
    assert desk.exchange.outcome == "unavailable"
    assert desk.cancelled_requests == [two]


def test_a_stream_that_is_half_closed_within_a_message_ends_with_an_error() -> None:
    desk = Desk()
    (event,) = desk.connection.feed(data_frame(1, frame_message(b"hello")[:7], frames.END_STREAM))
    assert isinstance(event, DataReceived)
    desk.exchange.on_data(event)
    assert (desk.exchange.outcome, desk.submitted) == ("internal", [])


def test_many_open_requests_hold_back_the_clients_window() -> None:
    desk = Desk()
    for _ in range(1100):
        desk.receive(b"x" * 200)
    given = sum(int.from_bytes(p) for kind, _, _, p in written(desk.connection) if kind == FrameType.WINDOW_UPDATE)
    held = 1100 * 205 - given
    assert held >= 76 * 205
    for request in desk.submitted:
        desk.exchange.succeeded(request, ())
    more = sum(int.from_bytes(p) for kind, _, _, p in written(desk.connection) if kind == FrameType.WINDOW_UPDATE)
    assert held - more < 65_535 // 4
