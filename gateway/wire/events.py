"""What a connection has understood from the bytes of its peer.

Nobody changes an event; the classes are not frozen because that would triple the time to make one.
"""

from dataclasses import dataclass

from gateway.wire.faults import WireFault
from gateway.wire.headers import Headers
from gateway.wire.stream import Stream


@dataclass(slots=True)
class HeadersReceived:
    """A header block is complete: the beginning of a stream, or its trailers."""

    stream: Stream
    headers: Headers
    end_stream: bool
    opens: bool


@dataclass(slots=True)
class DataReceived:
    """One DATA frame without its padding; `size` bytes of window are to be given back."""

    stream: Stream
    payload: bytes
    size: int
    end_stream: bool


@dataclass(slots=True)
class StreamReset:
    """A stream is gone, by the peer's RST_STREAM or, with a fault, by ours."""

    stream: Stream
    code: int
    fault: WireFault | None = None


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
