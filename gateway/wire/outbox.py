"""What one connection is about to write, within its peer's windows.

Knows windows, frames and queues. Does not know sockets: `sink` takes `chunks` to the transport, once per event, and
`dirty` is the list in which an outbox with something to write stands once.

Invariants:
1. DATA is only emitted while both the stream's window and the connection's are positive, and never beyond either.
2. What a stream queues leaves in order; its `ending` leaves last.
3. While `paused`, queued bytes stay queued; an empty frame that ends a stream waits only for those before it.
"""

from collections.abc import Callable
from typing import Any

from gateway.wire import frames
from gateway.wire.frames import DATA, END_HEADERS, END_STREAM, HEADER, HEADERS, pack_headers
from gateway.wire.headers import DEFAULT_TABLE_SIZE, table_size_update
from gateway.wire.stream import NEXT, SEND_END, SEND_HEADERS, Stream

LARGEST_FRAME = 64 * 1024
_PACK = HEADER.pack


class Outbox:
    """The sending half of a connection."""

    def __init__(self, dirty: "list[Outbox]") -> None:
        """Start with the protocol's default windows."""
        self.dirty = dirty
        self.chunks: list[bytes | bytearray] = []
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_MAX_FRAME_SIZE
        self.paused = False
        self._table_size = DEFAULT_TABLE_SIZE
        self._table_update = b""  # what the next header block must begin with
        self.blocked: dict[int, Stream] = {}  # those that wait for the connection's window or the transport
        self.starved: dict[int, Stream] = {}  # those that wait for their own window
        self.num_waited = 0  # pieces that had to wait, or parts of them
        self.sink: Callable[[], None] | None = None
        self.ended: list[Stream] = []  # streams whose `ending` has left
        self.released: list[tuple[Any, int]] = []  # owner of a queued piece, bytes of it now written

    def put(self, chunk: bytes | bytearray) -> None:
        """Write frames as they are."""
        if not self.chunks:
            self.dirty.append(self)
        self.chunks.append(chunk)

    def take(self) -> bytes:
        """Return everything to be written now; as bytes, since uvloop wraps anything else before it writes it."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data

    def limit_table(self, size: int) -> None:
        """Take the peer's HEADER_TABLE_SIZE: our next block must say that we keep to a smaller one (RFC 7541, 4.2)."""
        if size < self._table_size:
            self._table_size = size
            self._table_update = table_size_update(size)

    def limit_frames(self, size: int) -> None:
        """Take the peer's MAX_FRAME_SIZE; of a larger one no use is made."""
        self.max_frame = min(size, LARGEST_FRAME)

    def send_headers(self, stream: Stream, block: bytes, end_stream: bool = False) -> None:
        """Send a header block ahead of any queued data."""
        stream.state = NEXT[stream.state][SEND_HEADERS] or stream.refuse(SEND_HEADERS)
        self._put_headers(stream, block, end_stream)
        if end_stream:
            stream.ending = b""
            stream.move(SEND_END)

    def send_data(self, stream: Stream, piece: bytes, owner: Any = None, end_stream: bool = False) -> None:
        """Send or queue bytes; `owner` comes back in `released` with the bytes written."""
        size = len(piece)
        is_free = not stream.queue and not self.paused and stream.ending is None
        if is_free and 0 < size <= self.max_frame and size <= stream.send_window and size <= self.window:
            # one frame, nothing before it: as most pieces are, so that they cost no further call
            stream.send_window -= size
            self.window -= size
            if not self.chunks:
                self.dirty.append(self)
            self.chunks.append(_PACK(size << 8 | DATA, END_STREAM if end_stream else 0, stream.stream_id) + piece)
            if end_stream:
                stream.ending = b""
                stream.state = NEXT[stream.state][SEND_END] or stream.refuse(SEND_END)
            if owner is not None:
                self.released.append((owner, size))
            return
        stream.wait(piece, owner)
        if end_stream:
            stream.ending = b""
        self.flush(stream)

    def finish(self, stream: Stream, trailers: bytes | None = None) -> None:
        """End our side after what is queued, with a trailing header block or an empty DATA frame."""
        if trailers is None:
            stream.wait(b"", None)
        stream.ending = trailers or b""
        self.flush(stream)

    def flush(self, stream: Stream) -> None:
        """Send of one stream what its windows allow."""
        queue = stream.queue
        while queue and (not queue[0][0] or (not self.paused and stream.send_window > 0 and self.window > 0)):
            self._send_some(stream, *queue.popleft())
        if queue:
            waiting, other = (self.blocked, self.starved) if stream.send_window > 0 else (self.starved, self.blocked)
            waiting[stream.stream_id] = stream
            other.pop(stream.stream_id, None)
            return
        if self.blocked or self.starved:
            self._wait_no_more(stream)
        if stream.ending:
            self._put_headers(stream, stream.ending, True)
            stream.ending = b""
            stream.state = NEXT[stream.state][SEND_END] or stream.refuse(SEND_END)
            self.ended.append(stream)

    def flush_starved(self) -> None:
        """Send of every stream what its own window, which may have grown, now allows."""
        for stream in list(self.starved.values()):
            self.flush(stream)

    def flush_all(self) -> None:
        """Send of every stream that waits for the connection's window, or for the transport, what they now allow."""
        for stream in list(self.blocked.values()):
            if self.paused or self.window <= 0:
                return
            self.flush(stream)

    def forget(self, stream: Stream) -> None:
        """Drop what a stream has queued."""
        self._wait_no_more(stream)
        stream.queue = None

    def _wait_no_more(self, stream: Stream) -> None:
        self.blocked.pop(stream.stream_id, None)
        self.starved.pop(stream.stream_id, None)

    def _put_frame(self, kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> None:
        if not self.chunks:
            self.dirty.append(self)
        self.chunks.append(_PACK(len(payload) << 8 | kind, flags, stream_id) + payload)

    def _put_headers(self, stream: Stream, block: bytes, end_stream: bool) -> None:
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        size = len(block)
        if size <= self.max_frame:  # as most are: one frame, without a further call
            flags = END_HEADERS | END_STREAM if end_stream else END_HEADERS
            if not self.chunks:
                self.dirty.append(self)
            self.chunks.append(_PACK(size << 8 | HEADERS, flags, stream.stream_id) + block)
        else:
            self.put(pack_headers(stream.stream_id, block, end_stream, self.max_frame))

    def _send_some(self, stream: Stream, piece: bytes | memoryview, owner: Any) -> None:
        # an empty piece needs no window, and the stream's may be below 0
        size = min(len(piece), stream.send_window, self.window, LARGEST_FRAME) if piece else 0
        if size < len(piece):
            stream.wait(memoryview(piece)[size:], owner, first=True)
            piece = piece[:size]
        stream.send_window -= size
        self.window -= size
        self.num_waited += 1
        ends = stream.ending == b"" and not stream.queue
        self._put_data(stream.stream_id, piece, ends)
        if ends:
            stream.move(SEND_END)
        if owner is not None:
            self.released.append((owner, size))

    def _put_data(self, stream_id: int, piece: bytes | memoryview, end_stream: bool) -> None:
        step = self.max_frame
        for start in range(0, len(piece) or 1, step):
            part = piece[start : start + step] if len(piece) > step else piece
            flags = END_STREAM if end_stream and start + step >= len(piece) else 0
            self._put_frame(DATA, flags, stream_id, part)
