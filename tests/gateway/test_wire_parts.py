"""The parts of the wire: outbox, messages, headers, protobuf, express lane."""

import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.compression import UnknownEncoding, decompress
from gateway.wire import express, frames, protobuf, recording
from gateway.wire.connection import Connection
from gateway.wire.events import HeadersReceived
from gateway.wire.faults import ConnectionFault, StreamFault
from gateway.wire.frames import FrameType
from gateway.wire.headers import HeaderDecoder, encode_headers
from gateway.wire.messages import GATHER_BYTES, MessageCutter, MessageReader, MessageTooLarge, frame_message
from gateway.wire.recording import FRAMES_BYTES, MAX_PACKED_BYTES, Recording
from gateway.wire.stream import TRANSITIONS, Move, State, Stream
from gateway.wire.table import Role
from tests.gateway.protos import pb
from tests.gateway.wires import HELLO, data_frame, open_frame, server, written

BODIES = st.lists(st.binary(max_size=60), max_size=8)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({min(place, len(data)) for place in cuts}), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(BODIES, st.lists(st.integers(0, 500)))
def test_framed_messages_come_back_whole_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    reader = MessageReader(1000)
    found = [message for piece in cut(b"".join(map(frame_message, bodies)), cuts) for message in reader.feed(piece)]
    assert found == [(0, body) for body in bodies]


def test_a_message_that_announces_too_much_is_refused_before_it_arrives() -> None:
    with pytest.raises(MessageTooLarge, match="1001 bytes; the limit is 1000"):
        MessageReader(1000).feed(frame_message(b"x" * 1001)[:5])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 300), st.integers(GATHER_BYTES - 10, GATHER_BYTES + 50_000)), max_size=6),
    st.lists(st.integers(0, 250_000), max_size=30),
)
def test_cut_responses_lose_nothing_and_hold_small_messages_together(sizes: list[int], cuts: list[int]) -> None:
    data = b"".join(frame_message(bytes([index]) * size) for index, size in enumerate(sizes))
    cutter = MessageCutter()
    pieces: list[tuple[bytes, bool]] = []
    total = 0
    for part in cut(data, cuts):
        assert cutter.feed(b"") == ([], 0)
        more, count = cutter.feed(part)
        pieces += more
        total += count
    assert b"".join(piece for piece, _ in pieces) == data
    assert total == len(sizes)
    assert cutter.at_boundary
    boundaries = {0}
    for size in sizes:
        boundaries.add(max(boundaries) + 5 + size)
    pos = 0
    for piece, ends in pieces:
        pos += len(piece)
        assert ends == (pos in boundaries)


NAMES = st.sampled_from([b":path", b"grpc-status", b"x-a", b"x-b", b"content-type"])
VALUES = st.one_of(st.sampled_from([b"0", b"application/grpc"]), st.binary(max_size=30))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple))
def test_encoded_headers_decode_to_themselves_on_any_connection(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    block = encode_headers(headers)
    decoder = HeaderDecoder()
    assert decoder.decode(block) == headers
    assert decoder.decode(block) == headers


def test_a_cached_block_is_decoded_anew_after_the_table_has_changed() -> None:
    decoder = HeaderDecoder()
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == ((b"a", b"b"),)
    decoder.decode(b"\x40\x01c\x01d")
    assert decoder.decode(b"\xbe") == ((b"c", b"d"),)


def test_padding_is_stripped_and_refused_when_it_is_too_long() -> None:
    assert frames.strip_padding(frames.PADDED, b"\x02ab\0\0") == b"ab"
    with pytest.raises(ConnectionFault):
        frames.strip_padding(frames.PADDED, b"\x05ab\0\0")


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", Move)
def test_a_stream_moves_only_where_the_table_says(state: State, move: Move) -> None:
    stream = Stream(1, server().outbox, 0, 0)
    stream.state = state
    if (state, move) in TRANSITIONS:
        stream.move(move)
        assert stream.state == TRANSITIONS[state, move]
    else:
        with pytest.raises(StreamFault):
            stream.move(move)
        assert stream.state == state


def opened_stream(connection: Connection) -> Stream:
    (event,) = connection.feed(HELLO + open_frame(1))
    assert isinstance(event, HeadersReceived)
    written(connection)
    return event.stream


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60_000), max_size=5), st.lists(st.integers(1, 90_000), max_size=12))
def test_data_leaves_in_order_and_never_beyond_the_windows(pieces: list[bytes], updates: list[int]) -> None:
    connection = server()
    stream = opened_stream(connection)
    for piece in pieces:
        connection.outbox.send_data(stream, piece, "owner")
    connection.outbox.finish(stream, encode_headers(((b"grpc-status", b"0"),)))
    allowed, sent = frames.DEFAULT_WINDOW, b""
    for update in [*updates, 400_000]:
        for kind, flags, _, payload in written(connection):
            if kind == FrameType.DATA:
                assert len(payload) <= frames.DEFAULT_MAX_FRAME_SIZE
                sent += payload
                assert not flags
        assert len(sent) <= allowed
        connection.feed(frames.pack_window_update(1, update) + frames.pack_window_update(0, update))
        allowed += update
    tail = written(connection)
    sent += b"".join(payload for kind, _, _, payload in tail if kind == FrameType.DATA)
    assert sent == b"".join(pieces)
    assert sum(size for _, size in connection.outbox.released) == len(sent)
    assert not stream.queue
    assert stream.state == State.HALF_CLOSED_LOCAL


def test_a_smaller_initial_window_takes_back_what_was_not_used() -> None:
    connection = server()
    stream = opened_stream(connection)
    connection.feed(frames.pack_settings({4: 10}))
    connection.outbox.send_data(stream, b"x" * 25)
    connection.feed(frames.pack_settings({4: 20}))
    assert [len(payload) for kind, _, _, payload in written(connection) if kind == FrameType.DATA] == [10, 10]


def test_the_end_of_a_stream_waits_for_no_window_and_takes_nothing_from_one_below_zero() -> None:
    connection = server()
    stream = opened_stream(connection)
    connection.outbox.send_data(stream, b"x" * 25)
    connection.feed(frames.pack_settings({4: 0}))
    written(connection)
    connection.outbox.paused = True
    connection.outbox.finish(stream)
    assert written(connection) == [(FrameType.DATA, frames.END_STREAM, 1, b"")]
    assert (stream.send_window, connection.outbox.window) == (-25, frames.DEFAULT_WINDOW - 25)
    assert not connection.outbox.starved


def test_a_paused_transport_keeps_data_queued() -> None:
    connection = server()
    stream = opened_stream(connection)
    connection.outbox.paused = True
    connection.outbox.send_data(stream, b"x")
    assert not written(connection)
    connection.outbox.paused = False
    connection.outbox.flush_all()
    assert written(connection) == [(FrameType.DATA, 0, 1, b"x")]


def lane(tally: express.Tally) -> tuple[Connection, Connection]:
    upstream = Connection(Role.CLIENT, [], tally=tally)
    source = upstream.open_stream()
    upstream.outbox.send_headers(source, b"")
    upstream.feed(frames.pack_settings({}))
    client = server()
    target = opened_stream(client)
    upstream.enter_lane(source, target)
    written(upstream)
    return upstream, client


def test_whole_messages_pass_the_express_lane_with_only_the_stream_id_changed() -> None:
    tally = express.Tally()
    upstream, client = lane(tally)
    target = client.streams[1]
    message = frame_message(b"hello")
    assert upstream.feed(3 * data_frame(1, message)) == []
    assert written(client) == 3 * [(FrameType.DATA, 0, 1, message)]
    assert (tally.messages, tally.num_bytes) == (3, 30)
    assert target.send_window == client.outbox.window == frames.DEFAULT_WINDOW - 30


def test_the_express_lane_gives_credit_back_and_stays_open() -> None:
    upstream, _ = lane(express.Tally())
    message = frame_message(b"x" * 1000)
    passed = 0
    for _ in range(40):
        assert upstream.feed(data_frame(1, message)) == []
        passed += len(message)
    given = sum(int.from_bytes(payload) for kind, _, _, payload in written(upstream) if kind == FrameType.WINDOW_UPDATE)
    assert upstream.lanes
    assert 0 <= passed - given <= express.LANE_CREDIT
    upstream.leave_lane(upstream.streams[1])
    later = sum(int.from_bytes(payload) for kind, _, _, payload in written(upstream) if kind == FrameType.WINDOW_UPDATE)
    stream = upstream.streams[1]
    assert stream.recv_window + passed - given - later == upstream.stream_window
    assert stream.consumed == passed - given - later


def test_the_express_lane_stops_at_the_clients_window() -> None:
    upstream, client = lane(express.Tally())
    client.streams[1].send_window = 25
    events = upstream.feed(3 * data_frame(1, frame_message(b"hello")))
    assert len(written(client)) == 2
    assert len(events) == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3000), min_size=3, max_size=3),
    st.lists(st.tuples(st.sampled_from((1, 3, 5)), st.integers(1, 500)), max_size=20),
    st.lists(st.integers(0, 10_000), max_size=3),
)
def test_lanes_that_share_windows_exceed_none_and_leave_none_unused(
    windows: list[int], sent: list[tuple[int, int]], cuts: list[int]
) -> None:
    upstream, client = lane(express.Tally())
    client.feed(open_frame(3))
    targets = {1: client.streams[1], 3: client.streams[1], 5: client.streams[3]}
    client.streams[1].send_window, client.streams[3].send_window, client.outbox.window = windows
    for number in (3, 5):
        source = upstream.open_stream()
        upstream.outbox.send_headers(source, b"")
        upstream.enter_lane(source, targets[number])
    frames_sent = [(number, frame_message(b"%d" % number * size)) for number, size in sent]
    closed: set[int] = set()
    expected: list[tuple[int, bytes]] = []
    room = {1: windows[0], 3: windows[1], 0: windows[2]}
    for number, message in frames_sent:
        to = targets[number].stream_id
        if number in closed or len(message) > min(room[to], room[0]):
            closed.add(number)
        else:
            expected.append((to, message))
            room[to] -= len(message)
            room[0] -= len(message)
    data = b"".join(data_frame(number, message) for number, message in frames_sent)
    events = [event for piece in cut(data, cuts) for event in upstream.feed(piece)]
    assert [(to, payload) for _, _, to, payload in written(client)] == expected
    assert len(events) == len(sent) - len(expected)
    assert {1: client.streams[1].send_window, 3: client.streams[3].send_window, 0: client.outbox.window} == room


ODD_FRAMES = {
    "part of a message": data_frame(1, frame_message(b"hello")[:7]),
    "two messages": data_frame(1, 2 * frame_message(b"hello")),
    "a message of nothing": data_frame(1, frame_message(b"")),
    "padding": frames.pack_frame(FrameType.DATA, frames.PADDED, 1, b"\x01" + frame_message(b"hello") + b"\0"),
}


@pytest.mark.parametrize("packer", ["isal.isal_zlib", "zlib"])
def test_a_recording_holds_all_that_passed_the_lane_and_beside_it_in_bounded_memory(
    packer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "compress", pytest.importorskip(packer).compress)
    upstream, client = lane(express.Tally())
    source, target = upstream.streams[1], client.streams[1]
    target.send_window = client.outbox.window = frames.MAX_WINDOW
    source.recording = kept = Recording()
    sent = [frame_message(b"%d" % number * 100) for number in range(400)]
    for number, message in enumerate(sent):
        if number % 50 == 49:  # beside it, as where a lane is closed for a while
            upstream.leave_lane(source)
            kept.add(message)
            upstream.enter_lane(source, target)
        else:
            assert upstream.feed(data_frame(1, message)) == []
        assert sum(map(len, kept.frames)) < FRAMES_BYTES + 2 * express.LANE_CREDIT
    assert len(kept.packed) >= 2
    assert list(kept.payloads()) == sent


def test_a_recording_that_is_full_closes_the_lane() -> None:
    upstream, client = lane(express.Tally())
    source = upstream.streams[1]
    client.streams[1].send_window = client.outbox.window = frames.MAX_WINDOW
    source.recording = Recording()
    source.recording.packed_bytes = MAX_PACKED_BYTES + 1
    events = upstream.feed(20 * data_frame(1, frame_message(b"x" * 1000)))
    assert len(written(client)) == express.LANE_CREDIT // 1005
    assert len(events) == 20 - express.LANE_CREDIT // 1005


@pytest.mark.parametrize("name", ODD_FRAMES)
def test_a_frame_that_is_not_one_message_leaves_the_express_lane(name: str) -> None:
    upstream, client = lane(express.Tally())
    simple = data_frame(1, frame_message(b"first"))
    events = upstream.feed(simple + ODD_FRAMES[name] + simple)
    assert len(events) == 2
    assert len(written(client)) == 1
    assert not upstream.lanes
    assert upstream.streams[1].recv_window == upstream.stream_window - sum(event.size for event in events) - 10  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.lists(st.integers(0, 60_000), max_size=10))
def test_the_express_lane_forwards_the_same_however_its_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    data = b"".join(data_frame(1, frame_message(b"x" * size)) for size in sizes)
    outputs = []
    for pieces in ([data], cut(data, cuts)):
        upstream, client = lane(express.Tally())
        events = [event for piece in pieces for event in upstream.feed(piece)]
        outputs.append((b"".join(payload for *_, payload in written(client)), len(events)))
    assert outputs[0] == outputs[1]


def test_appended_parameters_are_read_as_the_requests_own() -> None:
    request = pb.ModelInferRequest(model_name="llm", id="seven")
    request.parameters["mine"].int64_param = 3
    encoded = request.SerializeToString() + protobuf.encode_parameter("request_key", "k-1")
    parsed = pb.ModelInferRequest.FromString(encoded)
    assert parsed.parameters["request_key"].string_param == "k-1"
    assert parsed.parameters["mine"].int64_param == 3
    assert protobuf.request_id(encoded) == b"seven"


@given(st.binary(max_size=60))
def test_the_id_of_anything_can_be_asked_for(noise: bytes) -> None:
    assert isinstance(protobuf.request_id(noise), bytes)


def test_the_abort_message_is_a_request_with_one_bytes_tensor() -> None:
    parsed = pb.ModelInferRequest.FromString(protobuf.encode_abort("llm_engine", "abort", "key-9"))
    assert parsed.model_name == "llm_engine"
    assert [(t.name, t.datatype, list(t.shape)) for t in parsed.inputs] == [("abort", "BYTES", [1])]
    assert parsed.raw_input_contents == [b"\x05\0\0\0key-9"]


def test_an_in_band_error_carries_the_requests_id() -> None:
    parsed = pb.ModelStreamInferResponse.FromString(protobuf.encode_stream_error("it broke: ü", b"id-1"))
    assert parsed.error_message == "it broke: ü"
    assert parsed.infer_response.id == "id-1"


def test_compressed_messages_become_plain_within_the_limit() -> None:
    assert decompress(b"deflate", zlib.compress(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(MessageTooLarge):
        decompress(b"deflate", zlib.compress(b"x" * 101), 100)
    with pytest.raises(UnknownEncoding, match="snappy"):
        decompress(b"snappy", b"", 100)
    with pytest.raises(UnknownEncoding, match="not valid gzip"):
        decompress(b"gzip", b"nonsense", 100)


def test_parameters_of_a_request_are_found_by_name_and_kind_and_the_last_one_counts() -> None:
    request = pb.ModelInferRequest(model_name="m")
    request.parameters["deadline_ms"].int64_param = 7
    request.parameters["below"].int64_param = -3
    request.parameters["text"].string_param = "é"
    body = request.SerializeToString()
    assert protobuf.int_parameter(body, b"deadline_ms") == 7
    assert protobuf.int_parameter(body + protobuf.encode_int_parameter("deadline_ms", 9), b"deadline_ms") == 9
    assert protobuf.int_parameter(body, b"below") == -3
    assert protobuf.int_parameter(body, b"text") is None
    assert protobuf.string_parameter(body, b"text") == "é".encode()
    assert protobuf.string_parameter(body, b"deadline_ms") is None
