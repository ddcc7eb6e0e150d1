"""What each incoming HTTP/2 frame means for a connection (RFC 9113, section 6).

Knows complete frames. Does not know how bytes are cut into them.
"""

from gateway.wire import frames
from gateway.wire.events import DataReceived, Event, GoAwayReceived, HeadersReceived, PingAnswered, StreamReset
from gateway.wire.faults import ConnectionFault, ErrorCode, StreamFault
from gateway.wire.fields import content_length, fault_of_request, fault_of_response, fault_of_trailers, is_interim
from gateway.wire.frames import END_HEADERS, END_STREAM, HAS_PRIORITY, PADDED, Setting
from gateway.wire.guards import Guards
from gateway.wire.headers import HeaderDecoder, Headers
from gateway.wire.limits import Limits
from gateway.wire.outbox import Outbox
from gateway.wire.stream import CLOSED, NEXT, RECV_DATA, RECV_END, RECV_HEADERS, Stream
from gateway.wire.table import CONNECTION_WINDOW, LOW_WINDOW, Role, StreamTable

PRIORITY_BYTES = 5


class HeaderBlock:
    """A header block that is still arriving."""

    __slots__ = ("data", "end_stream", "num_continuations", "stream_id")

    def __init__(self, stream_id: int, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.data = bytearray()
        self.num_continuations = 0


class FrameHandlers(StreamTable):
    """Applies frames to the streams, windows and settings of a connection."""

    def __init__(self, role: Role, dirty: list[Outbox], stream_window: int, limits: Limits) -> None:
        """Queue the preface and our settings."""
        super().__init__(role, dirty, stream_window)
        self.limits = limits
        self._guards = Guards(limits)
        self._max_block = limits.max_header_block_bytes
        self._decoder = HeaderDecoder(limits.max_header_list_bytes)
        self._block: HeaderBlock | None = None
        self._window = CONNECTION_WINDOW
        self._pinged_at_window = self.outbox.window
        self._granted = self.outbox.window  # bytes that the peer has ever let us send
        self.now = 0.0  # seconds, when the last bytes came
        self._settings_seen = False
        self._plain_request: Headers | None = None  # the last well-formed one without a content length
        self._greet()

    def _greet(self) -> None:
        settings = {
            Setting.INITIAL_WINDOW_SIZE: self.stream_window,
            Setting.MAX_HEADER_LIST_SIZE: self.limits.max_header_list_bytes,
        }
        if not self.is_server:
            self.outbox.put(frames.PREFACE)
            settings[Setting.ENABLE_PUSH] = 0
        else:
            settings[Setting.MAX_CONCURRENT_STREAMS] = self.limits.max_streams
        self.outbox.put(frames.pack_settings({int(key): value for key, value in settings.items()}))
        self.outbox.put(frames.pack_window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    # -- streams ----------------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        size = len(payload)
        self._window -= size
        if self._window < LOW_WINDOW:
            self._renew_window()
        if flags & PADDED:
            payload = frames.strip_padding(flags, payload)
        end_stream = bool(flags & END_STREAM)
        if not payload and not end_stream:
            self._guards.idle_frames.spend(self.now)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_gone(stream_id)
            return None
        if stream.target is not None:
            self.leave_lane(stream)
        stream.state = NEXT[stream.state][RECV_DATA] or stream.refuse(RECV_DATA)
        stream.recv_window -= size
        if stream.recv_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, f"stream {stream_id} exceeds its window")
        if stream.announced is not None:
            stream.announced -= len(payload)
            _check_announced(stream, end_stream)
        if end_stream:
            stream.state = NEXT[stream.state][RECV_END] or stream.refuse(RECV_END)
        return DataReceived(stream, payload, size, end_stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & PADDED:
            payload = frames.strip_padding(flags, payload)
        if flags & HAS_PRIORITY:
            if len(payload) < PRIORITY_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[PRIORITY_BYTES:]
        end_stream = bool(flags & END_STREAM)
        if not flags & END_HEADERS:
            self._block = HeaderBlock(stream_id, end_stream)
            return self._extend_block(flags, payload)
        if len(payload) > self._max_block:
            self._guards.check_header_block(len(payload), 0)
        headers = self._decoder.known.get(payload) or self._decoder.decode(payload)
        return self._take_headers(stream_id, headers, end_stream)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"CONTINUATION without HEADERS on stream {stream_id}")
        self._block.num_continuations += 1
        return self._extend_block(flags, payload)

    def _extend_block(self, flags: int, payload: bytes) -> Event | None:
        block = self._block
        if block is None:
            raise RuntimeError("no header block is open")
        block.data += payload
        self._guards.check_header_block(len(block.data), block.num_continuations)
        if not flags & END_HEADERS:
            return None
        self._block = None
        return self._take_headers(block.stream_id, self._decoder.decode(bytes(block.data)), block.end_stream)

    def _take_headers(self, stream_id: int, headers: Headers, end_stream: bool) -> Event | None:
        stream = self.streams.get(stream_id)
        opens = stream is None
        if stream is None:
            stream = self._accept(stream_id)
            if stream is None:
                return None
        if stream.target is not None:
            self.leave_lane(stream)
        stream.state = NEXT[stream.state][RECV_HEADERS] or stream.refuse(RECV_HEADERS)
        if not self.is_server:
            fault = fault_of_response(headers)
            if fault is not None:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, fault)
            if not end_stream and is_interim(headers):
                self._guards.idle_frames.spend(self.now)
                return None
        elif not (opens and headers is self._plain_request):
            self._check_fields(stream, headers, opens, end_stream)
        if end_stream:
            stream.state = NEXT[stream.state][RECV_END] or stream.refuse(RECV_END)
        return HeadersReceived(stream, headers, end_stream, opens)

    def _check_fields(self, stream: Stream, headers: Headers, opens: bool, end_stream: bool) -> None:
        if not opens and not end_stream:
            raise StreamFault(stream.stream_id, ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream")
        fault = fault_of_request(headers) if opens else fault_of_trailers(headers)
        if fault is not None:
            raise StreamFault(stream.stream_id, ErrorCode.PROTOCOL_ERROR, fault)
        if opens:
            stream.announced = content_length(headers)
            self._plain_request = headers if stream.announced is None else None
        if stream.announced is not None:
            _check_announced(stream, end_stream)

    def _accept(self, stream_id: int) -> Stream | None:
        if not self.is_server or stream_id <= self._highest:
            self._check_gone(stream_id)
            return None
        if not stream_id % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a client opens stream {stream_id}")
        self._highest = stream_id
        if len(self.streams) >= self.limits.max_streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, f"more than {self.limits.max_streams} streams")
        return self._add(stream_id)

    def _check_gone(self, stream_id: int) -> None:
        """Tell frames that were on their way when a stream ended from frames that can never be right."""
        ours = not self.is_server and stream_id % 2 == 1 and stream_id < self._next_id
        known = ours or (self.is_server and stream_id in self._reset_ids)
        if known:
            return
        was_open = self.is_server and 0 < stream_id <= self._highest
        code = ErrorCode.STREAM_CLOSED if was_open else ErrorCode.PROTOCOL_ERROR
        raise ConnectionFault(code, f"a frame on stream {stream_id}, which is not open")

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes) -> Event | None:
        self._count_reset()
        self._check_not_idle(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            return None
        self._drop(stream)
        return StreamReset(stream, frames.WORD.unpack(payload)[0])

    def _count_reset(self) -> None:
        """Count a stream that a client made us give up, be it by a fault: both are equally cheap for it."""
        if self.is_server:
            self._guards.resets.spend(self.now)

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        highest = self._highest if self.is_server else self._next_id - 2
        if not 0 < stream_id <= highest or not stream_id % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    def _on_priority(self, _flags: int, stream_id: int, _payload: bytes) -> Event | None:
        self._guards.idle_frames.spend(self.now)
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        return None

    # -- the connection ---------------------------------------------------------------------------------------------

    def _renew_window(self) -> None:
        if self._window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        self.outbox.put(frames.pack_window_update(0, CONNECTION_WINDOW - self._window))
        self._window = CONNECTION_WINDOW

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        self._guards.settings.spend(self.now)
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a SETTINGS ACK of {len(payload)} bytes")
            return None
        settings = frames.parse_settings(payload)
        self.outbox.limit_frames(settings.get(Setting.MAX_FRAME_SIZE, self.outbox.max_frame))
        if Setting.HEADER_TABLE_SIZE in settings:
            self.outbox.limit_table(settings[Setting.HEADER_TABLE_SIZE])
        if not self.is_server:
            self.peer_max_streams = settings.get(Setting.MAX_CONCURRENT_STREAMS, self._default_max_streams())
        if Setting.INITIAL_WINDOW_SIZE in settings:
            self._resize_windows(settings[Setting.INITIAL_WINDOW_SIZE])
        self.outbox.put(frames.pack_frame(frames.FrameType.SETTINGS, frames.ACK, 0))
        self.outbox.flush_starved()
        return None

    def _default_max_streams(self) -> int:
        return self.peer_max_streams if self._settings_seen else frames.MAX_STREAM_ID

    def _resize_windows(self, initial: int) -> None:
        change = initial - self.outbox.initial_window
        self.outbox.initial_window = initial
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > frames.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window grows beyond its limit")

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> Event | None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, though push is off")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if flags & frames.ACK:
            return PingAnswered(payload)
        if self.outbox.window < self._pinged_at_window:  # data has gone out since: a bandwidth probe, not a flood
            self._guards.pings.refill()
        self._pinged_at_window = self.outbox.window
        self._guards.pings.spend(self.now)
        self.outbox.put(frames.pack_ping(payload, ack=True))
        return None

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> Event | None:
        if stream_id or len(payload) < frames.GOAWAY.size:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream or too short")
        last, code = frames.GOAWAY.unpack_from(payload)
        return GoAwayReceived(last & frames.MAX_STREAM_ID, code, payload[frames.GOAWAY.size :])

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> Event | None:
        increment = frames.WORD.unpack(payload)[0] & frames.MAX_WINDOW
        num_streams = (self._highest + self._next_id) // 2  # one of the two stays at its beginning
        num_answered = num_streams + self.outbox.num_waited
        self._guards.count_update(self._granted - self.outbox.window, num_answered, self.now)
        if stream_id:
            self._open_stream_window(stream_id, increment)
            return None
        if not increment:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a connection window update of 0")
        self._granted += increment
        self.outbox.window += increment
        if self.outbox.window > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"a connection window of {self.outbox.window}")
        self.outbox.flush_all()
        return None

    def _open_stream_window(self, stream_id: int, increment: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        if not increment:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream window update of 0")
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, f"a stream window of {stream.send_window}")
        if stream.state != CLOSED:
            self.outbox.flush(stream)


def _check_announced(stream: Stream, end_stream: bool) -> None:
    if stream.announced is None or stream.announced == 0 or (stream.announced > 0 and not end_stream):
        return
    raise StreamFault(stream.stream_id, ErrorCode.PROTOCOL_ERROR, "the content length is not the length of the content")
