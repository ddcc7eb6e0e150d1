"""What RFC 9113 and 7541 demand, section by section: each case all at once and byte by byte.

An outcome is what the peer sees of it: `fine`, ("reset", stream, code) or ("goaway", code).
"""

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import frames
from gateway.wire.connection import Connection
from gateway.wire.events import DataReceived, HeadersReceived, PingAnswered
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import FrameType
from gateway.wire.headers import encode_headers
from gateway.wire.limits import Limits
from gateway.wire.stream import State
from gateway.wire.table import Role
from tests.gateway.wires import (
    HELLO,
    REQUEST,
    data_frame,
    describe,
    feed_in_pieces,
    open_frame,
    server,
    written,
)

BLOCK = encode_headers(REQUEST)
TRAILERS = ((b"x-checksum", b"7"),)
frame = frames.pack_frame


def request(*extra: tuple[bytes, bytes], without: bytes = b"", end_stream: bool = False) -> bytes:
    headers = tuple(item for item in REQUEST if item[0] != without)
    return open_frame(1, end_stream, (*headers, *extra))


def goaway(code: ErrorCode) -> tuple[str, int]:
    return "goaway", code


def reset(code: ErrorCode, stream_id: int = 1) -> tuple[str, int, int]:
    return "reset", stream_id, code


PROTOCOL, SIZE, FLOW = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR
CLOSED, COMPRESSION = ErrorCode.STREAM_CLOSED, ErrorCode.COMPRESSION_ERROR
ENDED = open_frame(1, end_stream=True)
CASES: dict[str, tuple[bytes, object]] = {
    # 4: frames
    "4.1 an unknown frame type is ignored": (frame(0x16, 0xFF, 9, b"whatever") + open_frame(1), "fine"),
    "4.1 unknown flags are ignored": (frame(FrameType.PING, 0xFE, 0, bytes(8)), "fine"),
    "4.1 the reserved bit of a stream id is ignored": (
        open_frame(1) + data_frame(1, b"x")[:5] + b"\x80\0\0\1x", "fine"),
    "4.2 DATA of the largest size is taken": (open_frame(1) + data_frame(1, bytes(16_384)), "fine"),
    "4.2 DATA above it is refused": (open_frame(1) + data_frame(1, bytes(16_385)), goaway(SIZE)),
    "4.2 HEADERS above it is refused": (frame(FrameType.HEADERS, 4, 1, bytes(16_385)), goaway(SIZE)),
    "4.3 a block that cannot be unpacked": (frame(FrameType.HEADERS, 5, 1, b"\x3f\xff\xff\xff\xff\xff"),
                                            goaway(COMPRESSION)),
    "4.3 a block interrupted by PRIORITY": (
        frame(FrameType.HEADERS, 0, 1, BLOCK) + frame(FrameType.PRIORITY, 0, 1, bytes(5)), goaway(PROTOCOL)),
    "4.3 a block interrupted by another stream's HEADERS": (
        frame(FrameType.HEADERS, 0, 1, BLOCK) + open_frame(3), goaway(PROTOCOL)),
    # 5: streams
    "5.1 idle: DATA": (data_frame(1, b"x"), goaway(PROTOCOL)),
    "5.1 idle: RST_STREAM": (frames.pack_reset(1, 8), goaway(PROTOCOL)),
    "5.1 idle: WINDOW_UPDATE": (frames.pack_window_update(1, 9), goaway(PROTOCOL)),
    "5.1 idle: CONTINUATION": (frame(FrameType.CONTINUATION, 4, 1, BLOCK), goaway(PROTOCOL)),
    "5.1 idle: PRIORITY is taken": (frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\1\7"), "fine"),
    "5.1 half-closed: DATA": (ENDED + data_frame(1, b"x"), reset(CLOSED)),
    "5.1 half-closed: HEADERS": (ENDED + open_frame(1, True, TRAILERS), reset(CLOSED)),
    "5.1 half-closed: WINDOW_UPDATE is taken": (ENDED + frames.pack_window_update(1, 9), "fine"),
    "5.1 half-closed: RST_STREAM is taken": (ENDED + frames.pack_reset(1, 8), "fine"),
    "5.1 closed: RST_STREAM again is taken": (open_frame(1) + 2 * frames.pack_reset(1, 8), "fine"),
    "5.1 closed: WINDOW_UPDATE is taken": (
        open_frame(1) + frames.pack_reset(1, 8) + frames.pack_window_update(1, 9), "fine"),
    "5.1 closed by its peer: DATA": (open_frame(1) + frames.pack_reset(1, 8) + data_frame(1, b"x"), goaway(CLOSED)),
    "5.1 closed by its peer: HEADERS": (open_frame(1) + frames.pack_reset(1, 8) + open_frame(1), goaway(CLOSED)),
    "5.1.1 an even stream": (open_frame(2), goaway(PROTOCOL)),
    "5.1.1 a stream below the last one": (open_frame(5) + open_frame(3), goaway(CLOSED)),
    "5.1.2 one stream too many": (b"".join(open_frame(i) for i in (1, 3, 5, 7, 9)), reset(ErrorCode.REFUSED_STREAM, 9)),
    "5.3 a stream that depends on itself is taken": (frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\3\7"), "fine"),
    # 6: the frame types
    "6.1 DATA on stream 0": (data_frame(0, b"x"), goaway(PROTOCOL)),
    "6.1 DATA with padding": (open_frame(1) + frame(FrameType.DATA, 8, 1, b"\2ok\0\0"), "fine"),
    "6.1 DATA that is all padding": (open_frame(1) + frame(FrameType.DATA, 8, 1, b"\3\0\0\0"), "fine"),
    "6.1 padding as long as the frame": (open_frame(1) + frame(FrameType.DATA, 8, 1, b"\4abc"), goaway(PROTOCOL)),
    "6.1 padded DATA without a length": (open_frame(1) + frame(FrameType.DATA, 8, 1), goaway(PROTOCOL)),
    "6.2 HEADERS on stream 0": (open_frame(0), goaway(PROTOCOL)),
    "6.2 padding longer than its HEADERS": (frame(FrameType.HEADERS, 0xC, 1, b"\xff" + BLOCK), goaway(PROTOCOL)),
    "6.2 HEADERS with padding and priority": (
        frame(FrameType.HEADERS, 0x2C, 1, b"\2\0\0\0\0\7" + BLOCK + b"\0\0"), "fine"),
    "6.3 PRIORITY on stream 0": (frame(FrameType.PRIORITY, 0, 0, bytes(5)), goaway(PROTOCOL)),
    "6.3 PRIORITY of four bytes": (open_frame(1) + frame(FrameType.PRIORITY, 0, 1, bytes(4)), goaway(SIZE)),
    "6.4 RST_STREAM on stream 0": (frames.pack_reset(0, 8), goaway(PROTOCOL)),
    "6.4 RST_STREAM of three bytes": (open_frame(1) + frame(FrameType.RST_STREAM, 0, 1, bytes(3)), goaway(SIZE)),
    "6.5 SETTINGS ACK with a payload": (frame(FrameType.SETTINGS, 1, 0, bytes(6)), goaway(SIZE)),
    "6.5 SETTINGS on a stream": (frame(FrameType.SETTINGS, 0, 1), goaway(PROTOCOL)),
    "6.5 SETTINGS of five bytes": (frame(FrameType.SETTINGS, 0, 0, bytes(5)), goaway(SIZE)),
    "6.5.2 ENABLE_PUSH of 2": (frames.pack_settings({2: 2}), goaway(PROTOCOL)),
    "6.5.2 INITIAL_WINDOW_SIZE of 2^31": (frames.pack_settings({4: 2**31}), goaway(FLOW)),
    "6.5.2 MAX_FRAME_SIZE of 16,383": (frames.pack_settings({5: 16_383}), goaway(PROTOCOL)),
    "6.5.2 MAX_FRAME_SIZE of 2^24": (frames.pack_settings({5: 2**24}), goaway(PROTOCOL)),
    "6.5.2 an unknown setting is ignored": (frames.pack_settings({0xAA: 1, 8: 1}), "fine"),
    "6.6 PUSH_PROMISE": (frame(FrameType.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), goaway(PROTOCOL)),
    "6.7 PING on a stream": (frame(FrameType.PING, 0, 1, bytes(8)), goaway(PROTOCOL)),
    "6.7 PING of six bytes": (frame(FrameType.PING, 0, 0, bytes(6)), goaway(SIZE)),
    "6.7 an ACK that nobody asked for is ignored": (frames.pack_ping(bytes(8), ack=True), "fine"),
    "6.8 GOAWAY is taken and streams go on": (open_frame(1) + frames.pack_goaway(0, 0) + data_frame(1, b"x"), "fine"),
    "6.8 GOAWAY on a stream": (frame(FrameType.GOAWAY, 0, 1, bytes(8)), goaway(PROTOCOL)),
    "6.8 GOAWAY of seven bytes": (frame(FrameType.GOAWAY, 0, 0, bytes(7)), goaway(PROTOCOL)),
    "6.9 WINDOW_UPDATE of 0": (frames.pack_window_update(0, 0), goaway(PROTOCOL)),
    "6.9 a stream's WINDOW_UPDATE of 0": (open_frame(1) + frames.pack_window_update(1, 0), reset(PROTOCOL)),
    "6.9 WINDOW_UPDATE of three bytes": (frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(3)), goaway(SIZE)),
    "6.9.1 a connection window beyond 2^31-1": (frames.pack_window_update(0, 2**31 - 1), goaway(FLOW)),
    "6.9.1 a stream window beyond 2^31-1": (open_frame(1) + frames.pack_window_update(1, 2**31 - 1), reset(FLOW)),
    "6.9.2 a change of INITIAL_WINDOW_SIZE that takes a window beyond it": (
        open_frame(1) + frames.pack_window_update(1, 2**31 - 1 - 65_535) + frames.pack_settings({4: 65_536}),
        goaway(FLOW)),
    "6.10 CONTINUATION after the end of its block": (
        open_frame(1) + frame(FrameType.CONTINUATION, 4, 1, BLOCK), goaway(PROTOCOL)),
    "6.10 CONTINUATION frames, one of them empty": (
        frame(FrameType.HEADERS, 1, 1, BLOCK[:3]) + frame(FrameType.CONTINUATION, 0, 1)
        + frame(FrameType.CONTINUATION, 4, 1, BLOCK[3:]), "fine"),
    # 8: what a request may look like
    "8.1 trailers": (open_frame(1) + data_frame(1, b"x") + open_frame(1, True, TRAILERS), "fine"),
    "8.1 trailers that do not end the stream": (open_frame(1) + open_frame(1, False, TRAILERS), reset(PROTOCOL)),
    "8.1 trailers with a pseudo-header": (open_frame(1) + open_frame(1, True, ((b":path", b"/"),)), reset(PROTOCOL)),
    "8.1.1 less DATA than announced": (
        request((b"content-length", b"5")) + data_frame(1, b"four", 1), reset(PROTOCOL)),
    "8.1.1 more DATA than announced": (request((b"content-length", b"3")) + data_frame(1, b"four"), reset(PROTOCOL)),
    "8.1.1 the DATA that was announced": (
        request((b"content-length", b"8")) + 2 * data_frame(1, b"four") + open_frame(1, True, TRAILERS), "fine"),
    "8.1.1 no DATA though some was announced": (request((b"content-length", b"1"), end_stream=True), reset(PROTOCOL)),
    "8.1.1 a content length that is no number": (request((b"content-length", b"-1")), reset(PROTOCOL)),
    "8.2 an upper-case name": (request((b"X-Mine", b"x")), reset(PROTOCOL)),
    "8.2.1 a name with a space": (request((b"x mine", b"x")), reset(PROTOCOL)),
    "8.2.1 a value with a line feed": (request((b"x-mine", b"a\nb")), reset(PROTOCOL)),
    "8.2.2 Connection": (request((b"connection", b"close")), reset(PROTOCOL)),
    "8.2.2 Transfer-Encoding": (request((b"transfer-encoding", b"chunked")), reset(PROTOCOL)),
    "8.2.2 TE other than trailers": (request((b"te", b"trailers, deflate")), reset(PROTOCOL)),
    "8.3 an unknown pseudo-header": (open_frame(1, headers=((b":x", b"y"), *REQUEST)), reset(PROTOCOL)),
    "8.3 a response's pseudo-header": (open_frame(1, headers=((b":status", b"200"), *REQUEST)), reset(PROTOCOL)),
    "8.3 a pseudo-header after a regular one": (request((b":path", b"/again"), without=b":path"), reset(PROTOCOL)),
    "8.3.1 no :method": (request(without=b":method"), reset(PROTOCOL)),
    "8.3.1 no :scheme": (request(without=b":scheme"), reset(PROTOCOL)),
    "8.3.1 no :path": (request(without=b":path"), reset(PROTOCOL)),
    "8.3.1 two :path": (open_frame(1, headers=((b":path", b"/"), *REQUEST)), reset(PROTOCOL)),
    "8.3.1 an empty :path": (open_frame(1, headers=((b":path", b""), *REQUEST[:2], *REQUEST[3:])), reset(PROTOCOL)),
    # RFC 7541
    "7541 2.3.3 an index beyond the table": (frame(FrameType.HEADERS, 5, 1, b"\xc6"), goaway(COMPRESSION)),
    "7541 4.2 a table larger than allowed": (
        frame(FrameType.HEADERS, 5, 1, b"\x3f\xe2\x1f" + BLOCK), goaway(COMPRESSION)),
    "7541 5.2 a string longer than its block": (frame(FrameType.HEADERS, 5, 1, b"\x00\x0aabc"), goaway(COMPRESSION)),
    "7541 6.1 index 0": (frame(FrameType.HEADERS, 5, 1, b"\x80"), goaway(COMPRESSION)),
}  # fmt: skip


def outcome(connection: Connection) -> object:
    for kind, _, stream_id, payload in written(connection):
        if kind == FrameType.GOAWAY:
            return "goaway", frames.GOAWAY.unpack_from(payload)[1]
        if kind == FrameType.RST_STREAM:
            return "reset", stream_id, frames.WORD.unpack(payload)[0]
    return "fine"


@pytest.mark.parametrize("name", CASES)
def test_the_rfcs_case_has_its_outcome_however_it_is_cut(name: str) -> None:
    data, expected = CASES[name]
    whole, single = server(limits=Limits(max_streams=4)), server(limits=Limits(max_streams=4))
    events = [describe(event) for event in whole.feed(HELLO + data)]
    assert feed_in_pieces(single, HELLO + data, list(range(len(HELLO + data)))) == events
    assert (outcome(whole), outcome(single)) == (expected, expected)
    assert whole.is_closed == (isinstance(expected, tuple) and expected[0] == "goaway")


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", goaway(PROTOCOL)),
        (frames.PREFACE + frame(FrameType.PING, 0, 0, bytes(8)), goaway(PROTOCOL)),
        (frames.PREFACE + frames.pack_settings({}), "fine"),
    ],
)
def test_a_connection_begins_with_preface_and_settings(begin: bytes, expected: object) -> None:
    connection = server()
    connection.feed(begin)
    assert outcome(connection) == expected


def test_settings_and_pings_are_acknowledged_in_their_order() -> None:
    connection = server()
    connection.feed(HELLO + frames.pack_ping(b"01234567") + frames.pack_settings({4: 1}))
    acknowledged = [(kind, flags) for kind, flags, _, _ in written(connection)]
    assert acknowledged == [(FrameType.SETTINGS, 1), (FrameType.PING, 1), (FrameType.SETTINGS, 1)]


def test_a_ping_of_ours_comes_back_as_an_event() -> None:
    connection = server()
    connection.feed(HELLO)
    connection.ping(b"whatever")
    assert (FrameType.PING, 0, 0, b"whatever") in written(connection)
    assert connection.feed(frames.pack_ping(b"whatever", ack=True)) == [PingAnswered(b"whatever")]


def opened(connection: Connection, begin: bytes = HELLO) -> HeadersReceived:
    (event,) = connection.feed(begin + open_frame(1))
    assert isinstance(event, HeadersReceived)
    written(connection)
    return event


def test_a_larger_initial_window_releases_what_waits_in_the_middle_of_a_stream() -> None:
    connection = server()
    stream = opened(connection, HELLO + frames.pack_settings({4: 3})).stream
    connection.outbox.send_data(stream, b"0123456789")
    connection.outbox.finish(stream, encode_headers(TRAILERS))
    connection.feed(frames.pack_settings({4: 0}) + frames.pack_settings({4: 7}))
    connection.feed(frames.pack_window_update(1, 3))
    sent = [(kind, payload) for kind, _, _, payload in written(connection) if kind != FrameType.SETTINGS]
    assert sent == [
        (FrameType.DATA, b"012"), (FrameType.DATA, b"3456"), (FrameType.DATA, b"789"),
        (FrameType.HEADERS, encode_headers(TRAILERS)),
    ]  # fmt: skip


def test_the_end_of_a_stream_needs_no_window() -> None:
    connection = Connection(Role.CLIENT)
    connection.feed(frames.pack_settings({4: 2}))
    stream = connection.open_stream()
    connection.outbox.send_headers(stream, BLOCK)
    connection.outbox.send_data(stream, b"ab")
    connection.outbox.finish(stream)
    assert written(connection)[-1] == (FrameType.DATA, frames.END_STREAM, 1, b"")
    assert stream.state == State.HALF_CLOSED_LOCAL


def test_frames_follow_the_peers_maximal_size() -> None:
    connection = server()
    stream = opened(
        connection, HELLO + frames.pack_settings({4: 10**6, 5: 20_000}) + frames.pack_window_update(0, 10**6)
    ).stream
    connection.outbox.send_data(stream, bytes(50_000))
    assert [len(payload) for kind, *_, payload in written(connection) if kind == FrameType.DATA] == [
        20_000,
        20_000,
        10_000,
    ]


def test_interim_responses_are_passed_over_and_malformed_ones_reset_their_stream() -> None:
    connection = Connection(Role.CLIENT)
    good, bad = connection.open_stream(), connection.open_stream()
    for stream in (good, bad):
        connection.outbox.send_headers(stream, BLOCK)
    interim = open_frame(1, headers=((b":status", b"103"), (b"link", b"x")))
    assert not connection.feed(frames.pack_settings({}) + interim)
    (answer,) = connection.feed(open_frame(1, headers=((b":status", b"200"), (b"content-type", b"application/grpc"))))
    assert isinstance(answer, HeadersReceived)
    assert not answer.opens
    for field in ((b"Server", b"x"), (b"connection", b"close"), (b"x", b"1\r\n"), (b":path", b"/")):
        (event,) = connection.feed(open_frame(bad.stream_id, headers=((b":status", b"200"), field)))
        assert describe(event) == ("reset", bad.stream_id, ErrorCode.PROTOCOL_ERROR)
        bad = connection.open_stream()
        connection.outbox.send_headers(bad, BLOCK)
    assert not connection.is_closed


@pytest.mark.parametrize("size", [0, 30, 100, 4095])
def test_a_smaller_header_table_is_acknowledged_in_the_next_block_and_only_there(size: int) -> None:
    connection = server()
    sizes = frames.SETTING.pack(1, size) + frames.SETTING.pack(1, 4096)  # the smallest counts
    stream = opened(connection, HELLO + frames.pack_frame(FrameType.SETTINGS, 0, 0, sizes)).stream
    decoder = Decoder()
    decoder.max_allowed_table_size = size
    connection.outbox.send_headers(stream, encode_headers(((b":status", b"200"),)))
    connection.outbox.finish(stream, encode_headers(TRAILERS))
    first, second = [payload for kind, *_, payload in written(connection) if kind == FrameType.HEADERS]
    assert decoder.decode(first, raw=True) == [(b":status", b"200")]
    assert second == encode_headers(TRAILERS)


def test_a_larger_header_table_needs_no_word_of_ours() -> None:
    connection = server()
    stream = opened(connection, HELLO + frames.pack_settings({1: 65_536})).stream
    connection.outbox.send_headers(stream, encode_headers(((b":status", b"200"),)))
    assert written(connection) == [(FrameType.HEADERS, 4, 1, encode_headers(((b":status", b"200"),)))]


def test_headers_of_a_peer_that_uses_the_whole_of_hpack_are_understood() -> None:
    connection, encoder = server(), Encoder()
    connection.feed(HELLO)
    for number in range(300):
        extra = ((b"x-number", str(number).encode()), (b"x-long", b"y" * (37 * number % 900)))
        block = encoder.encode([*REQUEST, *extra], huffman=bool(number % 2))
        (event,) = connection.feed(frames.pack_headers(2 * number + 1, block, True, 16_384))
        assert isinstance(event, HeadersReceived)
        assert event.headers == (*REQUEST, *extra)


class Peer:
    """A client that keeps to the rules, and the books of both directions' windows."""

    def __init__(self, window: int) -> None:
        self.connection = server(stream_window=65_535)
        self.connection.feed(HELLO + frames.pack_settings({4: window}))
        self.sendable = self.connection_sendable = 0
        self.receivable, self.connection_receivable, self.initial = window, 65_535, window
        self.stream = opened(self.connection, b"").stream
        self.sendable, self.connection_sendable = 65_535, 16 * 2**20
        self.got, self.queued = b"", b""

    def send(self, size: int) -> None:
        size = min(size, self.sendable, self.connection_sendable, 16_384)
        if size > 0:
            (event,) = self.connection.feed(data_frame(1, bytes(size)))
            assert isinstance(event, DataReceived)
            self.sendable -= size
            self.connection_sendable -= size
            self.connection.consume(self.stream, size)

    def be_sent(self, size: int) -> None:
        piece = bytes([len(self.queued) % 251]) * size
        self.queued += piece
        self.connection.outbox.send_data(self.stream, piece)

    def widen(self, size: int) -> None:
        self.connection.feed(frames.pack_window_update(1, size) + frames.pack_window_update(0, size))
        self.receivable += size
        self.connection_receivable += size

    def change_initial(self, size: int) -> None:
        self.connection.feed(frames.pack_settings({4: size}))
        self.receivable += size - self.initial
        self.initial = size

    def read(self) -> None:
        for kind, _, stream_id, payload in written(self.connection):
            if kind == FrameType.DATA:
                self.got += payload
                self.receivable -= len(payload)
                self.connection_receivable -= len(payload)
            elif kind == FrameType.WINDOW_UPDATE and stream_id:
                self.sendable += frames.WORD.unpack(payload)[0]
            elif kind == FrameType.WINDOW_UPDATE:
                self.connection_sendable += frames.WORD.unpack(payload)[0]
            assert kind not in {FrameType.GOAWAY, FrameType.RST_STREAM}


STEPS = st.one_of(*(st.tuples(st.just(name), st.integers(1, top)) for name, top in (
    ("send", 40_000), ("be_sent", 40_000), ("widen", 60_000), ("change_initial", 100_000),
)))  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 70_000), st.lists(STEPS, max_size=40))
def test_windows_agree_on_both_sides_whatever_the_peer_does(window: int, steps: list[tuple[str, int]]) -> None:
    """The stated invariant: neither side ever exceeds a window, nothing is reordered or lost, nobody waits in vain."""
    peer = Peer(window)
    for name, size in steps:
        getattr(peer, name)(size)
        peer.read()
        assert peer.stream.send_window == peer.receivable
        assert peer.connection.outbox.window == peer.connection_receivable
        assert peer.stream.recv_window == peer.sendable
        assert peer.got == peer.queued[: len(peer.got)]
        waits_for_window = peer.receivable <= 0 or peer.connection_receivable <= 0
        assert len(peer.got) == len(peer.queued) or waits_for_window
        assert peer.sendable >= peer.connection.stream_window * 3 // 4
    assert not peer.connection.is_closed
