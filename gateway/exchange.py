"""One call of a client: its requests, and their answers put in an order that the client's stream can carry.

Knows one client stream. Does not know instances; the dispatcher places requests and reports how they end.

Invariants:
1. The stream ends exactly once: with trailers, or with a reset.
2. Every request of a routed stream that ends badly leaves one in-band error, or ends the stream: where the client asked
   for that, or where its instance was lost within a message too large to be gathered first.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.call import Call
from gateway.compression import UnknownEncoding, decompress
from gateway.request import Request
from gateway.request_stages import DONE, END, WAITING
from gateway.status import NOT_AGAIN, OK_TRAILERS, RESPONSE_HEADERS, Code, Failure, trailers_of
from gateway.turns import Turns
from gateway.wire import protobuf
from gateway.wire.events import DataReceived
from gateway.wire.headers import Headers, encode_headers
from gateway.wire.messages import PREFIX_SIZE, MessageReader, MessageTooLarge, frame_message, whole_message

if TYPE_CHECKING:
    from gateway.client import ClientLink
    from gateway.dispatcher import Dispatcher
    from gateway.wire.stream import Stream

MAX_OPEN_REQUESTS = 1024  # on one stream; above it the client's window is not given back
CACHED_TRAILERS = 256
RESPONSE_BLOCK, OK_BLOCK = encode_headers(RESPONSE_HEADERS), encode_headers(OK_TRAILERS)
MAX_BUFFERED_BYTES = 256 * 2**20  # of incomplete requests on one connection


class Exchange:
    """A client's stream and the requests on it."""

    def __init__(self, link: ClientLink, stream: Stream, call: Call, dispatcher: Dispatcher) -> None:
        """Begin a call whose headers have been read."""
        self.link = link
        self.stream = stream
        self.call = call
        self.dispatcher = dispatcher
        self.requests: dict[Request, None] = {}
        self.ended = False
        self.outcome = "cancelled"
        self.incomplete_since: float | None = None if call.is_routed else link.loop.time()
        self._half_closed = False
        self._draining = False
        self._headers_sent = False
        self._connection = link.connection
        self._outbox = link.connection.outbox
        self._turns: Turns | None = None  # once an answer does not come in whole messages
        self._uncredited = 0
        self.notes: dict[bytes, bytes] = {}  # trailing metadata of the gateway's own
        limit = dispatcher.max_request_bytes
        self._max_bytes = limit if call.tenant is None else call.max_request_bytes(limit)
        self._reader: MessageReader | None = None  # once a message has come in parts
        self._whole: Request | None = None if call.is_routed else self._new_request()
        self._timer: asyncio.TimerHandle | None = None
        self.expires_at = None if call.timeout is None else link.loop.time() + call.timeout
        if call.timeout is not None:
            self._timer = link.loop.call_later(call.timeout, self._expire)
        if self._whole is not None:
            dispatcher.submit(self._whole)

    # -- from the client ----------------------------------------------------------------------------------------------

    def on_data(self, event: DataReceived) -> None:
        """Take bytes of the client's stream."""
        if self.ended:
            return
        self._half_closed |= event.end_stream
        if event.end_stream:
            self.incomplete_since = None
        if self._whole is not None:
            self._take_part(self._whole, event)
        else:
            self._take_messages(event)
            if not self.requests:
                self._finish_if_done()

    def on_end(self) -> None:
        """Take the client's half-close by trailers, which gRPC clients do not send but HTTP/2 allows."""
        self._half_closed = True
        self.incomplete_since = None
        if self._whole is not None:
            self._whole.add(b"", complete=True)
        self._finish_if_done()

    def cancel(self, reason: str) -> None:
        """The client is gone: end every request at its instance."""
        if not self.ended:
            self._close(reason)

    def on_defect(self, failure: Failure) -> None:
        """Take that the gateway has failed at something that the client sent."""
        self.end(failure)

    def drain(self) -> None:
        """Finish what is open and take nothing new."""
        self._draining = True
        self._finish_if_done()

    def written(self, size: int) -> None:
        """Give back to the client what has gone on to an instance, once even if it is sent again."""
        size = min(size, self._uncredited)
        self._uncredited -= size
        if size and not self.ended:
            self._connection.consume(self.stream, size)

    def _take_part(self, request: Request, event: DataReceived) -> None:
        padding = event.size - len(event.payload)
        self._uncredited += event.size
        if request.stage == DONE:
            return
        if request.stage == WAITING:
            if request.kept_bytes + len(event.payload) > self._max_bytes + PREFIX_SIZE:
                self.end(self._too_large(MessageTooLarge(request.kept_bytes, self._max_bytes)))
                return
            padding = event.size
        request.add(event.payload, event.end_stream)
        self.written(padding)

    def _take_messages(self, event: DataReceived) -> None:
        bodies = self._read_bodies(event.payload)
        self._uncredited += event.size
        for body in bodies:
            if not self.ended:
                self._take_request(body)
        self._credit()

    def _read_bodies(self, payload: bytes) -> list[bytes]:
        if self._reader is None:
            body = whole_message(payload, self._max_bytes)
            if body is not None:
                self.incomplete_since = None
                return [body]
            self._reader = MessageReader(self._max_bytes)
        return self._read_parts(self._reader, payload)

    def _read_parts(self, reader: MessageReader, payload: bytes) -> list[bytes]:
        try:
            bodies = [self._body(compressed, body) for compressed, body in reader.feed(payload)]
        except MessageTooLarge as error:
            self.end(self._too_large(error))
            return []
        except UnknownEncoding as error:
            self.end(Failure(Code.UNIMPLEMENTED, str(error)))
            return []
        self.link.note_buffered(self, len(reader.partial))
        if not reader.partial:
            self.incomplete_since = None
        elif bodies or self.incomplete_since is None:
            self.incomplete_since = self.link.loop.time()
        if self.link.num_buffered > MAX_BUFFERED_BYTES:
            self.end(Failure(Code.RESOURCE_EXHAUSTED, "too many incomplete requests on this connection"))
        elif self._half_closed and reader.partial:
            self.end(Failure(Code.INTERNAL, "the stream was half-closed within a message"))
        return bodies

    def _body(self, compressed: int, body: bytes) -> bytes:
        if not compressed:
            return body
        return decompress(self.call.encoding, body, self._max_bytes)

    def _take_request(self, body: bytes) -> None:
        request = self._new_request()
        request.keep(body, complete=True)
        if self._draining:
            request.step(END)
            self.failed(request, Failure(Code.UNAVAILABLE, "the gateway is shutting down"))
        else:
            self.dispatcher.submit(request)

    def _new_request(self) -> Request:
        request = Request(self, self._connection.now)
        self.requests[request] = None
        return request

    def _credit(self) -> None:
        if self.ended:
            return
        if len(self.requests) >= MAX_OPEN_REQUESTS:
            self.incomplete_since = None  # it is we who make the client wait
            return
        size, self._uncredited = self._uncredited, 0
        self._connection.consume(self.stream, size)

    def _expire(self) -> None:
        if not self.ended:
            self.end(Failure(Code.DEADLINE_EXCEEDED, "the deadline has passed"))
            self.link.hub.flush()

    @staticmethod
    def _too_large(error: MessageTooLarge) -> Failure:
        return Failure(Code.RESOURCE_EXHAUSTED, str(error), notes=(NOT_AGAIN,))

    # -- from instances -----------------------------------------------------------------------------------------------

    @property
    def is_clear(self) -> bool:
        """Whether messages may pass to the client untouched."""
        is_free = self._turns is None or self._turns.is_free
        return is_free and not self.stream.queue and not self.ended and not self._outbox.paused

    def response_headers(self, headers: Headers) -> None:
        """Send an instance's response headers, where they are the client's too."""
        if self._whole is not None and not self._headers_sent and self.stream.can_send():
            self._send_headers(encode_headers(headers))

    def deliver_message(self, request: Request, message: bytes) -> None:
        """Send a message of a response, or hold it while another request is within one."""
        if self._turns is not None:
            self.deliver(request, [(message, True)], 1)
        elif not self.ended and self.stream.can_send():
            if not self._headers_sent:
                self._send_headers(RESPONSE_BLOCK)
            self.dispatcher.delivered(1, len(message))
            self._outbox.send_data(self.stream, message, request)

    def deliver(self, request: Request, pieces: list[tuple[bytes, bool]], num_messages: int) -> None:
        """Send pieces of a response, or hold them while another request is within a message."""
        if self.ended or not self.stream.can_send():
            return
        if not self._headers_sent:
            self._send_headers(RESPONSE_BLOCK)
        if self._turns is None:
            self._turns = Turns(self._outbox, self.stream, self.requests)
        self.dispatcher.delivered(num_messages, sum([len(piece) for piece, _ in pieces]))
        self._turns.take(request, pieces)

    def succeeded(self, request: Request, trailers: Headers) -> None:
        """Take the end of a request that its instance finished."""
        self.requests.pop(request, None)
        if self._whole is not None:
            self._end_with(trailers, "ok")
            return
        if self._uncredited:
            self._credit()
        self._finish_if_done()

    def failed(self, request: Request, failure: Failure) -> None:
        """Take the end of a request that did not work out."""
        self.requests.pop(request, None)
        if self.ended:
            return
        is_within_message = self._turns is not None and self._turns.holder is request
        if self._whole is not None or self.call.wants_status or is_within_message:
            self.end(failure)
            return
        if self._turns is not None:
            self._turns.abandon(request)
        self.notes |= dict(failure.notes)
        body = request.body()
        error = protobuf.encode_stream_error(failure.message or failure.code.name, protobuf.request_id(body))
        self.deliver_message(request, frame_message(error))
        self._credit()
        self._finish_if_done()

    def end(self, failure: Failure) -> None:
        """End the client's stream with a status; what is still open is cancelled."""
        if not self.ended:
            self.notes |= dict(failure.notes)
            self._end_with(failure.trailers or trailers_of(failure.code, failure.message), failure.code.name.lower())

    def _send_headers(self, block: bytes) -> None:
        self._headers_sent = True
        self._outbox.send_headers(self.stream, block)

    def _finish_if_done(self) -> None:
        if self.ended or self._whole is not None or self.requests:
            return
        if self._turns is not None and self._turns.held:
            return
        if self._half_closed:
            self._end_with(OK_TRAILERS, "ok")
        elif self._draining:
            self.end(Failure(Code.UNAVAILABLE, "the gateway is shutting down"))

    def _end_with(self, trailers: Headers, outcome: str) -> None:
        if self.stream.can_send():
            if self.notes:
                trailers = (*trailers, *self.notes.items())
            self._outbox.finish(self.stream, self._last_block(trailers))
        self._close(outcome)

    def _last_block(self, trailers: Headers) -> bytes:
        if self._headers_sent:
            return OK_BLOCK if trailers == OK_TRAILERS else encode_headers(_only_trailers(trailers))
        if dict(trailers).get(b":status") is None:
            trailers = (*RESPONSE_HEADERS, *trailers)
        return encode_headers(trailers)

    def _close(self, outcome: str) -> None:
        self.ended = True
        self.outcome = outcome
        if self._timer is not None:
            self._timer.cancel()
        if self._turns is not None:
            self._turns.held.clear()
        for request in list(self.requests):
            self.dispatcher.cancelled(request)
        self.requests.clear()
        self.dispatcher.exchange_ended(self)
        self.link.forget(self)


@lru_cache(maxsize=CACHED_TRAILERS)
def _only_trailers(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if name[:1] != b":" and name != b"content-type")
