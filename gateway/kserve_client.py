"""A client of the gateway's own, for the HTTP side: its requests enter as any client's do, over joined links.

Knows one connection within the process, a stream for each request and how that ends. Does not know HTTP or who asks.

Invariants:
1. An answer that nobody takes holds its stream back: at most the stream's window and one message wait here.
2. A request ends once: answered, failed or cancelled; what comes after that is for nobody.
3. When `batches` ends, raises or is closed, the request is not open any more.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gateway.call import STATUS_FLAG, STREAM_INFER, own_block
from gateway.client import ClientLink, Terms
from gateway.joined_links import join
from gateway.kserve_messages import Chunk, KserveError, Tensor, encode_request, read_chunk
from gateway.patience import Patience
from gateway.status import NOT_AGAIN, Failure, failure_of_reset, failure_of_trailers
from gateway.upstream import UpstreamLink
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.express import Tally
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import MAX_STREAM_ID
from gateway.wire.limits import Limits, Rate
from gateway.wire.messages import MessageReader, frame_message, whole_message

if TYPE_CHECKING:
    from gateway.dispatcher import Dispatcher
    from gateway.link import Hub

GATEWAY, HTTP_SIDE = "the gateway itself", "the HTTP port"
MAX_MESSAGE_BYTES = 2**32 - 1  # as many as gRPC's framing can say
REQUEST_WINDOW = 64 * 2**20  # bytes: a request goes in as one piece, so that not many are incomplete at once
# all clients of the HTTP port share this connection, and that port has limits of its own
MANY = MAX_STREAM_ID
OPEN: dict[str, Any] = {
    item.name: Rate(MANY, MANY) if isinstance(item.default, Rate) else MANY for item in fields(Limits)
}
FOR_EVER = Patience(None, None, None, None)
TERMS = Terms(Limits(**OPEN), FOR_EVER, MANY, REQUEST_WINDOW)


class Completion:
    """One request in flight: whoever stands behind its stream."""

    def __init__(self, link: UpstreamLink, block: bytes, request: bytes) -> None:
        """Open a stream with these headers and send the encoded request."""
        self.ledger: dict[str, Any] | None = None  # known once all chunks have been read, where it was asked for
        self._link = link
        self._reader: MessageReader | None = None  # once a message has come in parts
        self._waiting: list[bytes] = []  # whole messages that nobody has taken
        self._owed = 0  # bytes that have come and are not given back yet
        self._has_ended = False
        self._error: KserveError | None = None
        self._news: asyncio.Future[None] | None = None  # somebody waits for
        self._stream = link.open(block, self)
        link.connection.outbox.send_data(self._stream, frame_message(request), None, end_stream=True)
        link.hub.flush_soon()

    async def batches(self) -> AsyncGenerator[list[Chunk], None]:
        """Yield the responses that have come, in order, as often as some have; the last has a finish reason.

        Raises:
            KserveError: the request failed or was ended by somebody else.
        """
        is_finished = False
        try:
            while self._waiting or not self._has_ended:
                if not self._waiting:
                    self._news = self._link.loop.create_future()
                    await self._news
                    continue
                chunks = [chunk for message in self._take() if (chunk := read_chunk(message)) is not None]
                if chunks:
                    is_finished |= any(chunk.finish_reason for chunk in chunks)
                    yield chunks
        finally:
            self.cancel()
        if self._error is not None:
            raise self._error
        if not is_finished:
            raise KserveError("INTERNAL", "the stream ended without a last response")

    def cancel(self) -> None:
        """End it; without effect where it has ended."""
        if not self._has_ended:
            self._end(KserveError("CANCELLED", "the request was cancelled"))
            self._link.connection.reset(self._stream, ErrorCode.CANCEL)
            self._link.hub.flush_soon()

    # -- called by the link -------------------------------------------------------------------------------------------

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""
        if event.end_stream:
            trailers = dict(event.headers)
            told = trailers.get(b"x-ledger")
            self.ledger = None if told is None else json.loads(told)[-1]
            failure = failure_of_trailers(event.headers)
            self._end(None if failure is None else _error_of(failure, trailers))
            self._link.connection.release(self._stream)

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response."""
        self._owed += event.size
        self._waiting += self._messages(event.payload)
        if self._waiting:
            self._tell()
        else:  # a message that is larger than the window: the rest is to come
            self._give_back()

    def on_reset(self, code: int) -> None:
        """Take a reset by the gateway."""
        self._end(_error_of(failure_of_reset(code, GATEWAY)))

    def on_lost(self, failure: Failure, code: int | None = None) -> None:  # noqa: ARG002 - the connection has ended
        """Take the end of the connection."""
        self._end(_error_of(failure))

    def on_defect(self, failure: Failure) -> None:
        """Take that the gateway has failed at an event of this stream."""
        self._end(_error_of(failure))

    def written(self, size: int) -> None:
        """Nobody waits for these bytes."""

    def _messages(self, payload: bytes) -> list[bytes]:
        if self._reader is None:
            message = whole_message(payload, MAX_MESSAGE_BYTES)
            if message is not None:
                return [message]
            self._reader = MessageReader(MAX_MESSAGE_BYTES)
        return [body for _, body in self._reader.feed(payload)]  # never compressed: nobody was told that we could

    def _take(self) -> list[bytes]:
        taken, self._waiting = self._waiting, []
        self._give_back()
        return taken

    def _give_back(self) -> None:
        owed, self._owed = self._owed, 0
        self._link.connection.consume(self._stream, owed)
        self._link.hub.flush_soon()

    def _end(self, error: KserveError | None) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._error = error
        self._stream.owner = None
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class KserveClient:
    """Opens streams over one connection, which is made at the first request and again after a defect."""

    def __init__(self, hub: Hub, dispatcher: Dispatcher) -> None:
        """Send requests to this dispatcher."""
        self.links: set[ClientLink] = set()  # the gateway's ends
        self._hub = hub
        self._dispatcher = dispatcher
        self._link: UpstreamLink | None = None

    def open(
        self,
        tensors: Sequence[Tensor],
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> Completion:
        """Send one request to the model, with further metadata and an id, to be answered within `timeout` seconds."""
        headers = [(STATUS_FLAG, b"true"), *((name.encode(), value.encode()) for name, value in metadata)]
        if timeout is not None:
            headers.append((b"grpc-timeout", b"%dm" % math.ceil(1000 * timeout)))
        block = own_block(STREAM_INFER, b"http", b"localhost", tuple(headers))
        return Completion(self._connected(), block, encode_request(tensors, request_id))

    def _connected(self) -> UpstreamLink:
        link = self._link
        if link is None or not link.can_open():
            if link is not None:
                link.is_draining = True
                link.check_idle()
            link = self._link = UpstreamLink(self._hub, GATEWAY, FOR_EVER, Tally(), lambda _link, _reason: None)
            link.connection.peer_max_streams = MANY
            join(link, ClientLink(self._hub, self._dispatcher, self.links, TERMS), (HTTP_SIDE, GATEWAY))
            self._hub.flush_soon()
        return link


def _error_of(failure: Failure, trailers: dict[bytes, bytes] | None = None) -> KserveError:
    told = trailers or {}
    after = told.get(b"retry-after")
    name, value = NOT_AGAIN
    return KserveError(
        failure.code.name, failure.message, None if after is None else float(after), told.get(name) != value
    )
