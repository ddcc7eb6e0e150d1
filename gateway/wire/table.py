"""The streams of one connection and what we do to them: open, credit, reset, forget.

Knows stream ids, windows and the outbox. Does not know incoming frames.
"""

from enum import Enum, auto

from gateway.wire import express, frames
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import MAX_STREAM_ID, pack_reset, pack_window_update
from gateway.wire.outbox import Outbox
from gateway.wire.stream import CLOSED, Stream

CONNECTION_WINDOW = 16 * 2**20
LOW_WINDOW = CONNECTION_WINDOW // 2  # below it the peer is given back what it has spent
ASSUMED_MAX_STREAMS = 100  # of a server that has not said
REMEMBERED_RESETS = 4096
CREDIT_SHARE = 4  # a stream's window is given back a quarter at a time


class Role(Enum):
    """Which end of the connection we are."""

    CLIENT = auto()
    SERVER = auto()


class StreamTable:
    """The streams of one connection, by id."""

    def __init__(self, role: Role, dirty: list[Outbox], stream_window: int) -> None:
        """Start without streams.

        Args:
            role: which end we are.
            dirty: where the outbox registers when it has something to write.
            stream_window: bytes a peer may send on a stream before we give some back.
        """
        self.is_server = role is Role.SERVER
        self.outbox = Outbox(dirty)
        self.stream_window = stream_window
        self.streams: dict[int, Stream] = {}
        self.lanes: dict[int, Stream] = {}
        self.peer_max_streams = ASSUMED_MAX_STREAMS
        self.is_closed = False
        self._highest = 0  # id of the peer's last stream
        self._next_id = 1
        self._reset_ids: dict[int, None] = {}  # streams we reset, whose frames may still be on their way

    def can_open(self) -> bool:
        """Whether the peer's limit and the id space leave room for one more stream of ours."""
        has_room = len(self.streams) < self.peer_max_streams and self._next_id <= MAX_STREAM_ID
        return not self.is_closed and has_room

    def open_stream(self) -> Stream:
        """Return a new stream of ours, still idle."""
        stream_id = self._next_id
        self._next_id = stream_id + 2
        stream = self.streams[stream_id] = Stream(
            stream_id, self.outbox, self.outbox.initial_window, self.stream_window
        )
        return stream

    def consume(self, stream: Stream, size: int) -> None:
        """Give `size` received bytes of a stream back to the peer, when enough have come together."""
        stream.consumed += size
        if stream.consumed >= self.stream_window // CREDIT_SHARE and stream.stream_id in self.streams:
            stream.recv_window += stream.consumed
            self.outbox.put(pack_window_update(stream.stream_id, stream.consumed))
            stream.consumed = 0

    def enter_lane(self, stream: Stream, target: Stream) -> None:
        """Let whole messages of a stream pass straight to `target`."""
        if stream.target is not None:
            self.leave_lane(stream)
        stream.target = target
        stream.lane_start = stream.lane_credit = stream.lane_told = min(express.LANE_CREDIT, stream.recv_window)
        stream.lane_id = target.stream_id
        stream.lane_chunks = target.outbox.chunks
        self.lanes[stream.stream_id] = stream

    def leave_lane(self, stream: Stream) -> None:
        """Close the lane of a stream, if it has one, and account for what went through."""
        if stream.target is None:
            return
        self.lanes.pop(stream.stream_id, None)
        spent = stream.lane_start - stream.lane_credit
        stream.target = None
        stream.recv_window -= spent
        if stream.recording is not None:
            stream.recording.count(spent)
        self.consume(stream, spent)

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream at once."""
        if self.streams.get(stream.stream_id) is stream:
            self._remember_reset(stream.stream_id)
            self._drop(stream)
            self.outbox.put(pack_reset(stream.stream_id, code))

    def release(self, stream: Stream) -> None:
        """Forget a stream if both sides have ended it."""
        if stream.state == CLOSED and self.streams.get(stream.stream_id) is stream:
            self._drop(stream)

    def sweep(self) -> None:
        """Forget the streams that our side has ended; a peer that has not ended its own is told to stop."""
        ended, self.outbox.ended = self.outbox.ended, []
        for stream in ended:
            if stream.state == CLOSED:
                if self.streams.get(stream.stream_id) is stream:
                    self._drop(stream)
            elif self.is_server:
                self.reset(stream, ErrorCode.NO_ERROR)

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; it comes back with these eight bytes."""
        self.outbox.put(frames.pack_ping(payload))

    def go_away(self, code: int = ErrorCode.NO_ERROR, debug: str = "", last_stream_id: int | None = None) -> None:
        """Tell the peer to open no more streams; those up to the last one named are still answered."""
        last = self._highest if last_stream_id is None else last_stream_id
        self.outbox.put(frames.pack_goaway(last, code, debug.encode()))

    def close(self, code: int = ErrorCode.NO_ERROR, debug: str = "") -> None:
        """Say goodbye and read nothing more."""
        if not self.is_closed:
            self.go_away(code, debug)
            self.is_closed = True

    def _add(self, stream_id: int) -> Stream:
        stream = Stream(stream_id, self.outbox, self.outbox.initial_window, self.stream_window)
        self.streams[stream_id] = stream
        return stream

    def _drop(self, stream: Stream) -> None:
        if stream.target is not None:
            self.leave_lane(stream)
        del self.streams[stream.stream_id]
        if stream.queue is not None:
            self.outbox.forget(stream)
        stream.ending = b""
        stream.state = CLOSED

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_ids[stream_id] = None
        if len(self._reset_ids) > REMEMBERED_RESETS:
            del self._reset_ids[next(iter(self._reset_ids))]
