"""A peer's bytes and what the connection makes of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import frames
from gateway.wire.events import ConnectionFailed, DataReceived, HeadersReceived, StreamReset
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import FrameType, Setting
from gateway.wire.headers import encode_headers
from gateway.wire.limits import DEFAULT_LIMITS, Limits
from gateway.wire.stream import State
from tests.gateway.wires import (
    HELLO,
    REQUEST,
    data_frame,
    describe,
    error_codes,
    feed_in_pieces,
    open_frame,
    server,
    written,
)

BLOCK = encode_headers(REQUEST)
PADDED_DATA = frames.pack_frame(FrameType.DATA, frames.PADDED, 1, b"\x03payload\0\0\0")
PADDED_PRIORITY_HEADERS = frames.pack_frame(
    FrameType.HEADERS,
    frames.PADDED | frames.HAS_PRIORITY | frames.END_HEADERS,
    3,
    b"\x02" + b"\x00\x00\x00\x01\x10" + BLOCK + b"\0\0",
)
CONVERSATION = b"".join((
    HELLO,
    frames.pack_settings({4: 100_000, 5: 20_000, 99: 7}),
    open_frame(1),
    data_frame(1, b"abc"),
    PADDED_DATA,
    frames.pack_frame(FrameType.PING, 0, 0, b"12345678"),
    PADDED_PRIORITY_HEADERS,
    frames.pack_frame(FrameType.PRIORITY, 0, 5, b"\0\0\0\1\1"),
    frames.pack_frame(200, 3, 1, b"a frame type of the future"),
    frames.pack_window_update(1, 1000),
    frames.pack_window_update(0, 1000),
    data_frame(1, b"end", frames.END_STREAM),
    frames.pack_reset(3, 8),
    frames.pack_headers(7, encode_headers((*REQUEST, (b"long", b"x" * 40_000))), False, 16_384),
    frames.pack_goaway(0, 0, b"bye"),
))  # fmt: skip


def test_a_conversation_gives_the_same_events_byte_by_byte_as_all_at_once() -> None:
    whole = [describe(event) for event in server().feed(CONVERSATION)]
    assert feed_in_pieces(server(), CONVERSATION, list(range(len(CONVERSATION)))) == whole
    assert [kind for kind, *_ in whole] == [
        "headers", "data", "data", "headers", "data", "reset", "headers", "goaway",
    ]  # fmt: skip
    assert whole[2][2:4] == (b"payload", 11)


def frame_strategy() -> st.SearchStrategy[bytes]:
    valid = st.sampled_from([
        open_frame(1), open_frame(3, end_stream=True), open_frame(5), data_frame(1, b"hello"), data_frame(1, b"", 1),
        data_frame(5, b"x" * 300), PADDED_DATA, frames.pack_reset(1, 8), frames.pack_reset(5, 0),
        frames.pack_settings({4: 0}), frames.pack_settings({4: 2**31 - 1}), frames.pack_window_update(0, 2**31 - 1),
        frames.pack_window_update(5, 70_000), frames.pack_frame(FrameType.PING, 0, 0, b"12345678"),
        frames.pack_frame(FrameType.CONTINUATION, 4, 1, BLOCK), frames.pack_frame(FrameType.HEADERS, 0, 7, BLOCK[:9]),
        frames.pack_frame(FrameType.CONTINUATION, 4, 7, BLOCK[9:]), frames.pack_goaway(0, 0),
    ])  # fmt: skip
    arbitrary = st.builds(
        frames.pack_frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)
    )
    return st.one_of(valid, valid, valid, arbitrary, st.binary(max_size=30))


@settings(max_examples=150, deadline=None)
@given(st.lists(frame_strategy(), max_size=14), st.lists(st.integers(0, 1500), max_size=12))
def test_any_bytes_give_the_same_events_and_replies_however_they_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data = HELLO + b"".join(pieces)
    one, many = server(), server()
    assert feed_in_pieces(many, data, cuts) == [describe(event) for event in one.feed(data)]
    assert written(many) == written(one)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_http2_end_the_connection_and_never_raise(noise: bytes) -> None:
    connection = server()
    connection.feed(noise)
    connection.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore")
    assert connection.is_closed
    assert error_codes(connection)[0] in {ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR}


FAULTS = {
    "data on an idle stream": (data_frame(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": (data_frame(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers on stream 0": (open_frame(0), ErrorCode.PROTOCOL_ERROR),
    "headers on an even stream": (open_frame(2), ErrorCode.PROTOCOL_ERROR),
    "a stream id that goes back": (open_frame(5, end_stream=True) + open_frame(3), ErrorCode.STREAM_CLOSED),
    "padding longer than the frame": (
        open_frame(1) + frames.pack_frame(FrameType.DATA, frames.PADDED, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
    "a frame above the limit": (frames.pack_frame(FrameType.DATA, 0, 1, b"x" * 16_385), ErrorCode.FRAME_SIZE_ERROR),
    "a ping of seven bytes": (frames.pack_frame(FrameType.PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "settings of seven bytes": (frames.pack_frame(FrameType.SETTINGS, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "settings on a stream": (frames.pack_frame(FrameType.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "an initial window above the limit": (frames.pack_settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    "a maximal frame size below the floor": (frames.pack_settings({5: 100}), ErrorCode.PROTOCOL_ERROR),
    "a window update of nothing": (frames.pack_window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "an acknowledgement of settings with a payload": (
        frames.pack_frame(FrameType.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "a window beyond the limit": (frames.pack_window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a push promise": (frames.pack_frame(FrameType.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "a continuation without headers": (frames.pack_frame(FrameType.CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "a header block that is interrupted": (
        frames.pack_frame(FrameType.HEADERS, 0, 1, BLOCK) + data_frame(1, b""), ErrorCode.PROTOCOL_ERROR),
    "a malformed header block": (frames.pack_frame(FrameType.HEADERS, 4, 1, b"\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a reset of an idle stream": (frames.pack_reset(1, 8), ErrorCode.PROTOCOL_ERROR),
    "a header block without end": (
        frames.pack_frame(FrameType.HEADERS, 0, 1) + 40 * frames.pack_frame(FrameType.CONTINUATION, 0, 1, b"\x00"),
        ErrorCode.ENHANCE_YOUR_CALM),
    "a header block of 80 kB": (
        frames.pack_headers(1, b"\x00" * 80_000, False, 16_384), ErrorCode.ENHANCE_YOUR_CALM),
    "a header bomb": (
        frames.pack_frame(
            FrameType.HEADERS, 4, 1, b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 100),
        ErrorCode.ENHANCE_YOUR_CALM),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_connection_is_answered_with_goaway(name: str) -> None:
    data, code = FAULTS[name]
    connection = server()
    events = connection.feed(HELLO + data)
    assert isinstance(events[-1], ConnectionFailed)
    assert error_codes(connection) == [code]
    assert connection.feed(open_frame(9)) == []


FLOODS = {
    "resets": b"".join(open_frame(i) + frames.pack_reset(i, 8) for i in range(1, 12_001, 2)),
    "streams that we have to reset": b"".join(
        open_frame(i) + frames.pack_window_update(i, 0) for i in range(1, 12_001, 2)),
    "pings": 3000 * frames.pack_ping(b"12345678"),
    "settings": 200 * frames.pack_settings({}),
    "acknowledgements": 200 * frames.pack_frame(FrameType.SETTINGS, frames.ACK, 0),
    "empty data": open_frame(1) + 3000 * data_frame(1, b""),
    "data of nothing but padding": open_frame(1) + 3000 * frames.pack_frame(FrameType.DATA, 8, 1, b"\1\0"),
    "priorities": 3000 * frames.pack_frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0\1"),
    "window updates of a stream": open_frame(1) + 3000 * frames.pack_window_update(1, 1),
    "window updates of the connection": 3000 * frames.pack_window_update(0, 1),
    "window updates of streams long gone": open_frame(1) + frames.pack_reset(1, 8)
        + 3000 * frames.pack_window_update(1, 1),
    "frames of an unknown type": 3000 * frames.pack_frame(77, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_answered_with_enhance_your_calm(name: str) -> None:
    connection = server()
    events = connection.feed(HELLO + FLOODS[name])
    assert isinstance(events[-1], ConnectionFailed)
    assert error_codes(connection) == [ErrorCode.ENHANCE_YOUR_CALM]


def test_what_floods_at_once_is_fine_over_time() -> None:
    connection = server()
    connection.feed(HELLO)
    for second in range(60):
        connection.feed(100 * frames.pack_frame(FrameType.PING, 0, 0, b"12345678"), now=float(second))
    assert not connection.is_closed


def test_pings_between_data_of_ours_are_never_a_flood() -> None:
    connection = server()
    (opened,) = connection.feed(HELLO + open_frame(1) + frames.pack_window_update(0, 10**6))
    assert isinstance(opened, HeadersReceived)
    connection.feed(frames.pack_window_update(1, 10**6))
    for _ in range(3 * DEFAULT_LIMITS.pings.burst):
        connection.outbox.send_data(opened.stream, b"token")
        connection.feed(frames.pack_frame(FrameType.PING, 0, 0, b"12345678"))
    assert not connection.is_closed


def test_two_window_updates_for_each_small_frame_are_never_a_flood() -> None:
    connection = server()
    (opened,) = connection.feed(HELLO + open_frame(1))
    assert isinstance(opened, HeadersReceived)
    for _ in range(2 * DEFAULT_LIMITS.updates.burst):
        connection.outbox.send_data(opened.stream, b"x" * 40)
        connection.feed(frames.pack_window_update(1, 40) + frames.pack_window_update(0, 40))
    assert not connection.is_closed


def test_a_client_that_reads_byte_by_byte_is_never_a_flood() -> None:
    connection = server()
    (opened,) = connection.feed(HELLO + frames.pack_settings({Setting.INITIAL_WINDOW_SIZE: 1}) + open_frame(1))
    assert isinstance(opened, HeadersReceived)
    connection.outbox.send_data(opened.stream, b"x" * 2 * DEFAULT_LIMITS.updates.burst)
    while opened.stream.queue and not connection.is_closed:
        connection.feed(frames.pack_window_update(1, 1) + frames.pack_window_update(0, 1))
    assert not connection.is_closed


def test_two_window_updates_for_each_call_are_never_a_flood() -> None:
    connection = server()
    connection.feed(HELLO)
    for stream_id in range(1, 4 * DEFAULT_LIMITS.updates.burst, 2):
        updates = frames.pack_window_update(stream_id, 7) + frames.pack_window_update(0, 7)
        connection.feed(open_frame(stream_id) + updates + frames.pack_reset(stream_id, 8), now=float(stream_id))
    assert not connection.is_closed


def test_more_room_for_the_connection_looks_at_no_stream_that_waits_for_its_own_window() -> None:
    connection = server()
    connection.feed(HELLO + frames.pack_settings({Setting.INITIAL_WINDOW_SIZE: 0}) + open_frame(1) + open_frame(3))
    outbox, (starved, reader) = connection.outbox, connection.streams.values()
    outbox.send_data(starved, b"never")
    outbox.send_data(reader, b"x" * frames.DEFAULT_WINDOW + b"last")
    connection.feed(frames.pack_window_update(3, 2 * frames.DEFAULT_WINDOW))
    assert (list(outbox.starved), list(outbox.blocked)) == ([1], [3])
    connection.feed(frames.pack_window_update(0, 4))
    assert (list(outbox.starved), list(outbox.blocked)) == ([1], [])
    connection.feed(frames.pack_settings({Setting.INITIAL_WINDOW_SIZE: 2}))
    assert (list(outbox.starved), list(outbox.blocked)) == ([], [1])
    connection.feed(frames.pack_window_update(0, 100) + frames.pack_window_update(1, 3))
    assert (outbox.starved, outbox.blocked, len(starved.queue or ())) == ({}, {}, 0)


def test_a_stream_above_the_limit_is_refused_and_the_others_live() -> None:
    connection = server(limits=Limits(max_streams=2))
    events = connection.feed(HELLO + open_frame(1) + open_frame(3) + open_frame(5) + data_frame(1, b"x"))
    assert [type(event) for event in events] == [HeadersReceived, HeadersReceived, DataReceived]
    resets = [frame for frame in written(connection) if frame[0] == FrameType.RST_STREAM]
    assert resets == [(FrameType.RST_STREAM, 0, 5, b"\0\0\0\7")]
    assert connection.feed(data_frame(5, b"was on its way")) == []
    assert not connection.is_closed


def test_more_data_than_a_streams_window_resets_that_stream() -> None:
    connection = server(stream_window=1000)
    connection.feed(HELLO + open_frame(1))
    events = connection.feed(data_frame(1, b"x" * 1001))
    assert isinstance(events[0], StreamReset)
    assert events[0].code == ErrorCode.FLOW_CONTROL_ERROR
    assert not connection.is_closed


def test_data_after_the_end_of_a_stream_resets_it() -> None:
    connection = server()
    events = connection.feed(HELLO + open_frame(1, end_stream=True) + data_frame(1, b"x"))
    assert isinstance(events[-1], StreamReset)
    assert events[-1].code == ErrorCode.STREAM_CLOSED


def test_consumed_bytes_are_given_back_a_quarter_of_the_window_at_a_time() -> None:
    connection = server(stream_window=1000)
    (opened,) = connection.feed(HELLO + open_frame(1))
    assert isinstance(opened, HeadersReceived)
    connection.feed(data_frame(1, b"x" * 500))
    written(connection)
    connection.consume(opened.stream, 200)
    assert written(connection) == []
    connection.consume(opened.stream, 100)
    assert written(connection) == [(FrameType.WINDOW_UPDATE, 0, 1, b"\0\0\1\x2c")]
    assert opened.stream.recv_window == 800


def test_a_stream_that_both_sides_ended_is_forgotten() -> None:
    connection = server()
    (opened,) = connection.feed(HELLO + open_frame(1, end_stream=True))
    assert isinstance(opened, HeadersReceived)
    connection.outbox.finish(opened.stream, encode_headers(((b"grpc-status", b"0"),)))
    connection.sweep()
    assert opened.stream.state == State.CLOSED
    assert not connection.streams


def test_a_stream_that_only_we_ended_is_reset_without_an_error() -> None:
    connection = server()
    (opened,) = connection.feed(HELLO + open_frame(1))
    assert isinstance(opened, HeadersReceived)
    written(connection)
    connection.outbox.finish(opened.stream, encode_headers(((b"grpc-status", b"0"),)))
    connection.sweep()
    assert [frame[0] for frame in written(connection)] == [FrameType.HEADERS, FrameType.RST_STREAM]
