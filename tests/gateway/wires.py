"""Helpers that speak as a peer: bytes in one cut or another, and what a connection made of them."""

from itertools import pairwise

from gateway.wire import frames
from gateway.wire.connection import Connection
from gateway.wire.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PingAnswered,
    StreamReset,
)
from gateway.wire.headers import Headers, encode_headers
from gateway.wire.limits import Limits
from gateway.wire.table import Role

REQUEST: Headers = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelStreamInfer"),
    (b":authority", b"here"),
    (b"content-type", b"application/grpc"),
)
MANY_STREAMS = Limits(max_streams=100_000)
HELLO = frames.PREFACE + frames.pack_settings({})


def server(stream_window: int = frames.DEFAULT_WINDOW, limits: Limits = MANY_STREAMS) -> Connection:
    connection = Connection(Role.SERVER, [], stream_window, limits)
    connection.outbox.take()
    return connection


def open_frame(stream_id: int, end_stream: bool = False, headers: Headers = REQUEST) -> bytes:
    return frames.pack_headers(stream_id, encode_headers(headers), end_stream, frames.DEFAULT_MAX_FRAME_SIZE)


def data_frame(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.pack_frame(frames.FrameType.DATA, flags, stream_id, payload)


def describe(event: Event) -> tuple[object, ...]:
    """Return an event as plain values, so that those of two connections can be compared."""
    match event:
        case HeadersReceived():
            return "headers", event.stream.stream_id, event.headers, event.end_stream, event.opens
        case DataReceived():
            return "data", event.stream.stream_id, event.payload, event.size, event.end_stream
        case StreamReset():
            return "reset", event.stream.stream_id, event.code
        case GoAwayReceived():
            return "goaway", event.last_stream_id, event.code, event.debug
        case PingAnswered():
            return "pong", event.payload
        case ConnectionFailed():
            return "failed", event.fault.code, event.fault.message


def feed_in_pieces(connection: Connection, data: bytes, cuts: list[int]) -> list[tuple[object, ...]]:
    """Feed the bytes cut at the given places."""
    edges = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    described: list[tuple[object, ...]] = []
    for begin, end in pairwise(edges):
        described += [describe(event) for event in connection.feed(data[begin:end])]
    return described


def written(connection: Connection) -> list[tuple[int, int, int, bytes]]:
    """Take what the connection wants to write as (type, flags, stream id, payload)."""
    data = connection.outbox.take() if connection.outbox.chunks else b""
    connection.outbox.dirty.clear()
    data = data.removeprefix(frames.PREFACE)
    found = []
    while data:
        word, flags, stream_id = frames.HEADER.unpack_from(data)
        end = frames.HEADER_SIZE + (word >> 8)
        found.append((word & 0xFF, flags, stream_id, bytes(data[frames.HEADER_SIZE : end])))
        data = data[end:]
    return found


def error_codes(connection: Connection) -> list[int]:
    """Take the codes of the GOAWAY frames that the connection wants to write."""
    goaways = [payload for kind, _, _, payload in written(connection) if kind == frames.FrameType.GOAWAY]
    return [frames.GOAWAY.unpack_from(payload)[1] for payload in goaways]
