"""What a connection has understood from the bytes of its peer.

Nobody changes an event; the classes are not frozen because that would triple the time to make one.
"""

from dataclasses import dataclass

from gateway.wire.faults import WireFault
from gateway.wire.headers import Headers
from gateway.wire.stream import Stream


class HeadersReceived:
    """A header block is complete: the beginning of a stream, or its trailers."""

    __slots__ = ("end_stream", "headers", "opens", "stream")

    def __init__(self, stream: Stream, headers: Headers, end_stream: bool, opens: bool) -> None:
        self.stream = stream
        self.headers = headers
        self.end_stream = end_stream
        self.opens = opens


class DataReceived:
    """One DATA frame without its padding; `size` bytes of window are to be given back."""

    __slots__ = ("end_stream", "payload", "size", "stream")

    def __init__(self, stream: Stream, payload: bytes, size: int, end_stream: bool) -> None:
        self.stream = stream
        self.payload = payload
        self.size = size
        self.end_stream = end_stream


class StreamReset:
    """A stream is gone, by the peer's RST_STREAM or, with a fault, by ours."""

    __slots__ = ("code", "fault", "stream")

    def __init__(self, stream: Stream, code: int, fault: WireFault | None = None) -> None:
        self.stream = stream
        self.code = code
        self.fault = fault


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no streams above the last one named."""

    last_stream_id: int
    code: int
    debug: bytes


@dataclass(slots=True)
class PingAnswered:
    """A ping of ours has come back: what the peer sends from now on it sends knowing all that we sent before."""

    payload: bytes


@dataclass(slots=True)
class ConnectionFailed:
    """The peer broke the protocol; GOAWAY stands in the outbox and nothing more will be read."""

    fault: WireFault


Event = HeadersReceived | DataReceived | StreamReset | GoAwayReceived | PingAnswered | ConnectionFailed
