"""A client's connection: its streams become exchanges.

Knows one client's transport and protocol events. Does not know routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.call import BadCall, Call, parse_call
from gateway.exchange import Exchange
from gateway.link import Hub, Link, end_owner
from gateway.log import log
from gateway.patience import Patience
from gateway.safety.guard import Denied
from gateway.status import GRPC_CONTENT, Code, Failure, trailers_of
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
from gateway.wire.faults import ErrorCode
from gateway.wire.frames import MAX_STREAM_ID
from gateway.wire.headers import Headers, encode_headers
from gateway.wire.limits import Limits
from gateway.wire.table import Role

if TYPE_CHECKING:
    import asyncio

    from gateway.dispatcher import Dispatcher

HTTP_OK = 200
DRAIN_POLL_SECONDS = 0.05
DRAIN_PING = b"draining"


@dataclass(frozen=True, slots=True)
class Terms:
    """What every client is held to."""

    limits: Limits
    patience: Patience
    max_connections: int
    stream_window: int = 256 * 1024  # bytes that a client may send on a stream before it is given some back


class ClientLink(Link):
    """One client."""

    def __init__(self, hub: Hub, dispatcher: Dispatcher, clients: set[ClientLink], terms: Terms) -> None:
        """Serve a connection that is being accepted; `clients` holds it while it lives."""
        super().__init__(hub, Connection(Role.SERVER, hub.dirty, terms.stream_window, terms.limits), terms.patience)
        self.dispatcher = dispatcher
        self.terms = terms
        self.exchanges: set[Exchange] = set()
        self.num_buffered = 0  # bytes of incomplete requests
        self._buffered: dict[Exchange, int] = {}
        self._headers: Headers | None = None  # of the last call that was opened
        self._call: Call | None = None
        self._clients = clients
        self._draining = False
        self._told = False  # whether a draining client has seen that it is to open no more streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many already."""
        if len(self._clients) >= self.terms.max_connections:
            message = f"more than {self.terms.max_connections} connections"
            log("client_refused", peer=str(transport.get_extra_info("peername")), reason=message)
            self.connection.close(ErrorCode.ENHANCE_YOUR_CALM, message)
        else:
            self._clients.add(self)
        super().connection_made(transport)

    def handle(self, event: Event) -> None:
        """Act on one event; a defect of ours ends its stream, not the connection."""
        owner: Exchange | None = None
        try:
            if isinstance(event, DataReceived):
                data = event  # each kind by a name of its own, so that compiled code knows its type
                owner = data.stream.owner
                if owner is not None:
                    owner.on_data(data)
            elif isinstance(event, HeadersReceived):
                headers = event
                owner = headers.stream.owner
                if headers.opens:
                    self._open(headers)
                elif owner is not None:
                    owner.on_end()
            elif isinstance(event, StreamReset):
                owner = event.stream.owner
                if owner is not None:
                    owner.cancel("cancelled")
            else:
                self._handle_rare(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, other streams are not to end of it
            self.contain(event, owner, error)

    def _handle_rare(self, event: PingAnswered | ConnectionFailed | GoAwayReceived) -> None:
        match event:
            case PingAnswered(payload=payload):
                if payload == DRAIN_PING:
                    self._drain_streams()
            case ConnectionFailed():
                log("client_fault", peer=self._peer(), code=event.fault.code.name, reason=event.fault.message)
                self._cancel_all("client_fault")
            case GoAwayReceived():
                pass

    def lost(self, error: Exception | None) -> None:  # noqa: ARG002 - any end of a client's connection is the same
        """End everything the client had open."""
        self._clients.discard(self)
        self._cancel_all("disconnected")

    def note_buffered(self, exchange: Exchange, size: int) -> None:
        """Take how many bytes of an incomplete request an exchange holds."""
        self.num_buffered += size - self._buffered.pop(exchange, 0)
        if size:
            self._buffered[exchange] = size

    def forget(self, exchange: Exchange) -> None:
        """Drop an exchange that has ended, and the connection after the last one of a drain."""
        if self.num_buffered:
            self.note_buffered(exchange, 0)
        self.exchanges.discard(exchange)
        exchange.stream.owner = None
        if self._told:
            self._close_if_drained()

    def drain(self) -> None:
        """Have the client open no more streams, finish what is open, then close.

        What the client sends until it has heard of that (a ping comes back after it) is served as ever.
        """
        if self._draining:
            return
        self._draining = True
        self.connection.go_away(last_stream_id=MAX_STREAM_ID)
        self.connection.ping(DRAIN_PING)

    def watch(self, now: float) -> None:
        """Judge the connection's silence, and that of each request which has only come in part."""
        super().watch(now)
        limit = self.vigil.patience.message_s
        for exchange in list(self.exchanges) if limit is not None else ():
            since = exchange.incomplete_since
            if since is not None and limit is not None and now - since > limit:
                message = f"the request was not complete within {limit:g} s"
                exchange.end(Failure(Code.DEADLINE_EXCEEDED, message))

    def retire(self, reason: str) -> None:
        """Ask a client without streams to leave."""
        log("client_idle", peer=self._peer(), reason=reason)
        self.drain()

    def cut(self, reason: str) -> None:
        """Give up a client that keeps us waiting."""
        log("client_too_slow", peer=self._peer(), reason=reason)
        self.connection.close(ErrorCode.ENHANCE_YOUR_CALM, reason)
        self._cancel_all("client_too_slow")
        self.hub.flush()
        self.close()

    def _open(self, event: HeadersReceived) -> None:
        try:
            call = self._call
            if call is None or event.headers is not self._headers:
                call = self._call_of(event.headers)
        except BadCall as error:
            self._refuse(event, error.http_status, Failure(Code.INVALID_ARGUMENT, str(error)))
            return
        except Denied as error:
            self._refuse(event, HTTP_OK, error.failure)
            return
        exchange = Exchange(self, event.stream, call, self.dispatcher)
        if exchange.ended:
            return
        event.stream.owner = exchange
        self.exchanges.add(exchange)
        if event.end_stream:
            exchange.on_end()

    def _call_of(self, headers: Headers) -> Call:
        """Return what headers ask for, and remember it: most calls of a client have the same object of its decoder."""
        self._call = call = self.dispatcher.guard.open(parse_call(headers))
        self._headers = headers
        return call

    def forget_call(self) -> None:
        """Have the next call looked at anew, whatever its headers: who may ask for what has changed."""
        self._call = self._headers = None

    def _refuse(self, event: HeadersReceived, http_status: int, failure: Failure) -> None:
        status = (b":status", str(http_status).encode())
        block = encode_headers((status, GRPC_CONTENT, *trailers_of(failure.code, failure.message)))
        if event.stream.can_send():
            self.connection.outbox.finish(event.stream, block)

    def _cancel_all(self, reason: str) -> None:
        for exchange in list(self.exchanges):
            try:
                exchange.cancel(reason)
            except Exception as error:  # noqa: BLE001 - a defect of ours at one stream keeps no other open
                end_owner(exchange, error)

    def _drain_streams(self) -> None:
        self._told = True
        self.connection.go_away()
        for exchange in list(self.exchanges):
            exchange.drain()
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if not self.exchanges:
            self.loop.call_soon(self._say_goodbye)

    def _say_goodbye(self) -> None:
        if self.exchanges or self.transport is None:
            return
        outbox = self.connection.outbox
        if outbox.blocked or outbox.starved:  # the client has not taken everything yet
            self.loop.call_later(DRAIN_POLL_SECONDS, self._say_goodbye)
            return
        self.connection.close(ErrorCode.NO_ERROR)
        self.hub.flush()
        self.close()

    def _peer(self) -> str:
        return str(self.transport.get_extra_info("peername")) if self.transport is not None else "?"
