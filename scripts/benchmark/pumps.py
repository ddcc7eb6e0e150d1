"""A lean KServe backend and lean clients that push and count HTTP/2 frames, so as to be no benchmark's bottleneck.

Knows frames through the gateway's own wire library. Does not know what stands between client and backend. The backend
writes many ready-made 200-byte response messages at once, one of each stream in turn, within its peer's windows; the
clients announce the largest windows there are and count DATA payload.
"""

import asyncio
from struct import Struct
from typing import cast

from gateway.wire import frames
from gateway.wire.connection import Connection
from gateway.wire.events import DataReceived, Event, HeadersReceived
from gateway.wire.headers import encode_headers
from gateway.wire.limits import Limits
from gateway.wire.messages import MessageReader, frame_message
from gateway.wire.protobuf import encode_field
from gateway.wire.stream import Stream
from gateway.wire.table import Role

MESSAGE_BYTES = 200
ROUNDS = 16  # messages of each stream in one write
STREAM_INFER = b"/inference.GRPCInferenceService/ModelStreamInfer"
PUMP_MODEL, ECHO_MODEL = b"pump", b"echo"
READ_BYTES = 1 << 20
HEADER = Struct(">IBI")


def response_message() -> bytes:
    """Return a `ModelStreamInferResponse` of 200 bytes with its gRPC prefix."""
    inner = encode_field(1, b"llm") + encode_field(3, b"request-0001")
    filler = MESSAGE_BYTES - len(inner) - 6
    response = encode_field(2, inner + encode_field(6, b"x" * filler))
    if len(response) != MESSAGE_BYTES:
        raise RuntimeError(f"the response has {len(response)} bytes")
    return frame_message(response)


RESPONSE = response_message()
RESPONSE_HEADERS = encode_headers(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS = encode_headers(((b"grpc-status", b"0"),))
READY = frame_message(b"\x08\x01")


class BackendPump(asyncio.Protocol):
    """One connection of the backend."""

    def __init__(self) -> None:
        self.connection = Connection(Role.SERVER, [], limits=Limits(max_streams=10_000))
        self.transport: asyncio.Transport | None = None
        self.is_paused = False
        self.active: dict[Stream, bytes] = {}
        self.readers: dict[Stream, MessageReader] = {}
        self.scheduled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=512 * 1024)
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop."""
        self.transport = None
        self.active.clear()

    def pause_writing(self) -> None:
        """Wait for the transport."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.is_paused = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Understand frames, answer, and go on pumping."""
        for event in self.connection.feed(data):
            self._handle(event)
        self.active = {stream: frame for stream, frame in self.active.items() if self._is_open(stream)}
        self.readers = {stream: reader for stream, reader in self.readers.items() if self._is_open(stream)}
        self._write()
        self._pump()

    def _is_open(self, stream: Stream) -> bool:
        return stream.stream_id in self.connection.streams

    def _handle(self, event: Event) -> None:
        if isinstance(event, HeadersReceived):
            self.readers[event.stream] = MessageReader(1 << 20)
            event.stream.owner = dict(event.headers)[b":path"]
            self.connection.outbox.send_headers(event.stream, RESPONSE_HEADERS)
        elif isinstance(event, DataReceived):
            self.connection.consume(event.stream, event.size)
            for _, body in self.readers[event.stream].feed(event.payload):
                self._request(event.stream, body)
            if event.end_stream and event.stream not in self.active and event.stream.can_send:
                self.connection.outbox.finish(event.stream, TRAILERS)
                self.connection.sweep()

    def _request(self, stream: Stream, body: bytes) -> None:
        if PUMP_MODEL in body:
            self.active[stream] = HEADER.pack(len(RESPONSE) << 8, 0, stream.stream_id) + RESPONSE
        else:
            answer = RESPONSE if stream.owner == STREAM_INFER else READY
            self.connection.outbox.send_data(stream, answer)

    def _pump(self) -> None:
        self.scheduled = False
        outbox, transport = self.connection.outbox, self.transport
        size = ROUNDS * len(RESPONSE)
        if transport is None or self.is_paused:
            return
        ready = [stream for stream in self.active if stream.send_window >= size]
        ready = ready[: outbox.window // size]
        if not ready:
            return
        for stream in ready:
            stream.send_window -= size
        outbox.window -= size * len(ready)
        transport.write(b"".join([self.active[stream] for stream in ready]) * ROUNDS)
        if not self.is_paused and not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _write(self) -> None:
        outbox = self.connection.outbox
        outbox.dirty.clear()
        if outbox.chunks and self.transport is not None:
            self.transport.write(outbox.take())


class ClientPump(asyncio.BufferedProtocol):
    """One client connection that opens streams and counts what comes back."""

    def __init__(self) -> None:
        self.buffer = bytearray(READ_BYTES)
        self.view = memoryview(self.buffer)
        self.kept = 0
        self.num_bytes = 0  # DATA payload received
        self.arrived = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Announce the largest windows there are."""
        self.transport = cast("asyncio.Transport", transport)
        settings = frames.pack_settings({int(frames.Setting.INITIAL_WINDOW_SIZE): frames.MAX_WINDOW})
        window = frames.pack_window_update(0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
        self.transport.write(frames.PREFACE + settings + window)

    def open_stream(self, stream_id: int) -> None:
        """Open a `ModelStreamInfer` stream."""
        headers = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", STREAM_INFER), (b":authority", b"bench"))
        block = encode_headers((*headers, (b"content-type", b"application/grpc"), (b"te", b"trailers")))
        self._send(frames.pack_headers(stream_id, block, False, frames.DEFAULT_MAX_FRAME_SIZE))

    def send_request(self, stream_id: int, model: bytes, end_stream: bool) -> None:
        """Send one request to a model of the pump."""
        payload = frame_message(encode_field(1, model))
        self._send(frames.pack_frame(frames.FrameType.DATA, int(end_stream), stream_id, payload))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Hand out the room behind an incomplete frame."""
        return self.view[self.kept :]

    def buffer_updated(self, nbytes: int) -> None:
        """Count complete frames."""
        end = self.kept + nbytes
        pos = 0
        total = 0
        unpack, buffer = HEADER.unpack_from, self.buffer
        while end - pos >= frames.HEADER_SIZE:
            word, flags, _ = unpack(buffer, pos)
            after = pos + frames.HEADER_SIZE + (word >> 8)
            if after > end:
                break
            if word & 0xFF:
                self._control(word & 0xFF, flags, buffer[pos + frames.HEADER_SIZE : after])
            else:
                total += word >> 8
            pos = after
        self.num_bytes += total
        self.kept = end - pos
        buffer[: self.kept] = buffer[pos:end]
        if total:
            self.arrived.set()

    def close(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abort()

    def _control(self, kind: int, flags: int, payload: bytearray) -> None:
        if kind in {frames.FrameType.SETTINGS, frames.FrameType.PING} and not flags & frames.ACK:
            answer = bytes(payload) if kind == frames.FrameType.PING else b""
            self._send(frames.pack_frame(kind, frames.ACK, 0, answer))

    def _send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
