"""One HTTP/2 connection as a state machine: bytes in, events out, replies left in its outbox.

Knows how bytes are cut into frames and in which order frames may come. Does not know sockets, a clock
(time is given) or gRPC.

Invariants:
1. The same bytes give the same events however they are cut.
2. A stream is in `streams` from its first HEADERS until both sides ended it or one reset it.
3. After a ConnectionFailed nothing more is read.
"""

from collections.abc import Callable

from gateway.wire import frames
from gateway.wire.events import ConnectionFailed, Event, StreamReset
from gateway.wire.express import Tally, forward
from gateway.wire.faults import ConnectionFault, ErrorCode, StreamFault
from gateway.wire.frames import (
    CONTINUATION,
    DATA,
    DEFAULT_MAX_FRAME_SIZE,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    MAX_STREAM_ID,
    SETTINGS,
    FrameType,
)
from gateway.wire.handlers import FrameHandlers
from gateway.wire.limits import DEFAULT_LIMITS, Limits
from gateway.wire.outbox import Outbox
from gateway.wire.table import LOW_WINDOW, Role

DEFAULT_STREAM_WINDOW = 65535
_UNPACK = HEADER.unpack_from
SIZES: dict[int, int] = {
    FrameType.PRIORITY: 5,
    FrameType.RST_STREAM: 4,
    FrameType.PING: 8,
    FrameType.WINDOW_UPDATE: 4,
}


class Connection(FrameHandlers):
    """The protocol state of one connection."""

    def __init__(
        self,
        role: Role,
        dirty: list[Outbox] | None = None,
        stream_window: int = DEFAULT_STREAM_WINDOW,
        limits: Limits = DEFAULT_LIMITS,
        tally: Tally | None = None,
    ) -> None:
        """Queue the preface and our settings.

        Args:
            role: which end we are.
            dirty: where the outbox registers when it has something to write.
            stream_window: bytes a peer may send on a stream before we give some back.
            limits: what the peer may ask for.
            tally: counts what the express lane carries.
        """
        super().__init__(role, [] if dirty is None else dirty, stream_window, limits)
        self.tally = tally or Tally()
        self.tail = b""  # of a frame that is not complete; the next `receive` must find it at the buffer's beginning
        self._pos = 0  # up to where the bytes at hand are understood
        self.incomplete_since: float | None = None  # when what has arrived of a frame or header block began to
        self._preface = frames.PREFACE if role is Role.SERVER else b""
        self._handlers: dict[int, Callable[[int, int, bytes], Event | None]] = {
            FrameType.PRIORITY: self._on_priority,
            FrameType.RST_STREAM: self._on_reset,
            FrameType.SETTINGS: self._on_settings,
            FrameType.PUSH_PROMISE: self._on_push_promise,
            FrameType.PING: self._on_ping,
            FrameType.GOAWAY: self._on_goaway,
            FrameType.WINDOW_UPDATE: self._on_window_update,
            FrameType.CONTINUATION: self._on_continuation,
        }

    @property
    def has_settings(self) -> bool:
        """Whether the peer's settings have arrived."""
        return self._settings_seen

    def receive(self, buffer: bytearray, end: int, now: float, handle: Callable[[Event], None]) -> None:
        """Understand `buffer[:end]`, which begins with `tail`, event by event.

        What is done about one event, such as opening an express lane, already holds for the bytes behind it.

        Args:
            buffer: at least `end` bytes; express lanes rewrite stream ids in it.
            end: bytes that are valid.
            now: seconds, for rate limits.
            handle: takes each event as soon as it is understood.
        """
        if self.is_closed:
            return
        self.now = now
        try:
            self._pos = self._skip_preface(buffer, end) if self._preface else 0
            if not self._preface:
                self._frames(buffer, self._pos, end, handle)
        except ConnectionFault as fault:
            self._pos = end
            self.close(fault.code, fault.message)
            handle(ConnectionFailed(fault))
        self.tail = b"" if self._pos == end else bytes(memoryview(buffer)[self._pos : end])
        self._note_incomplete(self._pos > 0, now)

    def feed(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Understand some more bytes; a convenience around `receive`."""
        buffer = bytearray(self.tail + data)
        events: list[Event] = []
        self.receive(buffer, len(buffer), now, events.append)
        return events

    def _note_incomplete(self, some_complete: bool, now: float) -> None:
        if self._block is None and not self.tail:
            self.incomplete_since = None
        elif self.incomplete_since is None or (some_complete and self._block is None):
            self.incomplete_since = now

    def _skip_preface(self, buffer: bytearray, end: int) -> int:
        size = min(end, len(self._preface))
        if buffer[:size] != self._preface[:size]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the client's preface is not HTTP/2's")
        if size < len(self._preface):
            return 0
        self._preface = b""
        return size

    def _frames(  # noqa: C901 - one loop, so that a frame costs no further call
        self, buffer: bytearray, pos: int, end: int, handle: Callable[[Event], None]
    ) -> None:
        if self.lanes and self._block is None:
            pos = self._express(buffer, pos, end)
        data = bytes(memoryview(buffer)[pos:end]) if pos < end else b""  # slices of it cost half of the buffer's
        first = pos
        last = end - HEADER_SIZE
        while pos <= last and not self.is_closed:
            word, flags, stream_id = _UNPACK(buffer, pos)
            length = word >> 8
            if length > DEFAULT_MAX_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            begin = pos + HEADER_SIZE
            if begin + length > end:
                break
            pos = begin + length
            kind = word & 0xFF
            stream_id &= MAX_STREAM_ID
            if self._block is not None or not self._settings_seen:
                self._check_order(kind, stream_id)
            payload = data[begin - first : pos - first]
            try:
                if kind == DATA:
                    event = self._on_data(flags, stream_id, payload)
                elif kind == HEADERS:
                    event = self._on_headers(flags, stream_id, payload)
                else:
                    event = self._control_frame(kind, flags, stream_id, payload)
            except StreamFault as fault:
                event = self._fail_stream(fault)
            if event is not None:
                handle(event)
            if self.lanes and self._block is None and not self.is_closed:
                pos = self._express(buffer, pos, end)
        self._pos = pos

    def _express(self, buffer: bytearray, pos: int, end: int) -> int:
        before = self.tally.num_bytes
        pos = forward(buffer, pos, end, self.lanes, self.tally)
        self._window -= self.tally.num_bytes - before
        if self._window < LOW_WINDOW:
            self._renew_window()
        return pos

    def _control_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Event | None:
        expected = SIZES.get(kind)
        if expected is not None and len(payload) != expected:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{FrameType(kind).name} of {len(payload)} bytes")
        handler = self._handlers.get(kind)
        if handler is None:
            self._guards.idle_frames.spend(self.now)
            return None
        event = handler(flags, stream_id, payload)
        self._settings_seen = True
        return event

    def _check_order(self, kind: int, stream_id: int) -> None:
        block = self._block
        if block is not None and (kind != CONTINUATION or stream_id != block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")
        if not self._settings_seen and kind != SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _fail_stream(self, fault: StreamFault) -> Event | None:
        self._count_reset()
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self.reset(stream, fault.code)
            return StreamReset(stream, fault.code, fault)
        self._remember_reset(fault.stream_id)
        self.outbox.put(frames.pack_reset(fault.stream_id, fault.code))
        return None
