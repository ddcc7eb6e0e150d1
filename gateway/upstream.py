"""Connections to one instance, shared by all requests that go there.

Knows streams and who owns each. Does not know clients, routing or health beyond reporting what it saw.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.address import connect
from gateway.link import Hub, Link, end_owner
from gateway.log import log
from gateway.patience import Patience
from gateway.status import Code, Failure
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
from gateway.wire.express import Tally
from gateway.wire.faults import ErrorCode
from gateway.wire.stream import CLOSED, Stream
from gateway.wire.table import Role

UPSTREAM_STREAM_WINDOW = 65535  # what one request may have waiting here when its client is slow
CONNECT_TIMEOUT = 2.0


class Caller(Protocol):
    """Who stands behind an upstream stream."""

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response."""

    def on_reset(self, code: int) -> None:
        """Take a reset by the instance."""

    def on_lost(self, failure: Failure, code: int | None = None) -> None:
        """Take the end of the connection or instance, or its fault; `code` where the stream is still to be reset."""

    def on_defect(self, failure: Failure) -> None:
        """Take the end of the stream by a defect of the gateway's own."""


@dataclass(frozen=True, slots=True)
class Route:
    """How an instance is reached."""

    address: str
    patience: Patience
    tls: ssl.SSLContext | None = None
    server_name: str | None = None  # in its certificate, where that is not the address's host

    @property
    def scheme(self) -> bytes:
        """What stands in `:scheme`."""
        return b"http" if self.tls is None else b"https"


class UpstreamLink(Link):
    """One connection to an instance."""

    def __init__(
        self, hub: Hub, name: str, patience: Patience, tally: Tally, gone: Callable[[UpstreamLink, str], None]
    ) -> None:
        """Prepare a connection to the instance `name`; `gone` learns of its end and why."""
        super().__init__(hub, Connection(Role.CLIENT, hub.dirty, UPSTREAM_STREAM_WINDOW, tally=tally), patience)
        self.name = name
        self.is_draining = False
        self._gone = gone
        self._reason = "connection lost"

    def can_open(self) -> bool:
        """Whether one more stream may be opened."""
        return not self.is_draining and self.connection.can_open()

    def open(self, block: bytes, owner: Caller) -> Stream:
        """Open a stream with these encoded headers."""
        stream = self.connection.open_stream()
        stream.owner = owner
        self.connection.outbox.send_headers(stream, block)
        return stream

    def handle(self, event: Event) -> None:
        """Act on one event; a defect of ours ends its stream, not the connection that others share."""
        owner: Caller | None = None
        try:
            if isinstance(event, HeadersReceived):
                headers = event  # each kind by a name of its own, so that compiled code knows its type
                owner = headers.stream.owner
                if owner is not None:
                    owner.on_headers(headers)
                else:
                    self.connection.release(headers.stream)
            elif isinstance(event, DataReceived):
                data = event
                owner = data.stream.owner
                if owner is not None:
                    padding = data.size - len(data.payload)
                    if padding:
                        self.connection.consume(data.stream, padding)
                    owner.on_data(data)
                    if data.end_stream:
                        self._end_without_trailers(data.stream)
                else:
                    self.connection.release(data.stream)
            elif isinstance(event, StreamReset):
                owner = event.stream.owner
                if owner is not None:
                    self._end_reset(owner, event)
            else:
                self._handle_rare(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, other streams are not to end of it
            self.contain(event, owner, error)

    def _handle_rare(self, event: GoAwayReceived | ConnectionFailed | PingAnswered) -> None:
        if isinstance(event, GoAwayReceived):
            self._on_goaway(event)
        elif isinstance(event, ConnectionFailed):
            self._reason = f"protocol error: {event.fault.message}"
            log("instance_fault", instance=self.name, code=event.fault.code.name, reason=event.fault.message)

    def _end_reset(self, owner: Caller, event: StreamReset) -> None:
        if event.fault is None:
            owner.on_reset(event.code)
        else:
            owner.on_lost(self._fault(event.fault.message))

    def _end_without_trailers(self, stream: Stream) -> None:
        owner: Caller | None = stream.owner
        if stream.state != CLOSED:
            self.connection.reset(stream, ErrorCode.CANCEL)
        else:
            self.connection.release(stream)
        if owner is not None:
            owner.on_lost(self._fault("it ended its answer without trailers"))

    def _fault(self, what: str) -> Failure:
        return Failure(Code.INTERNAL, f"instance {self.name}: {what}")

    def lost(self, error: Exception | None) -> None:
        """End every stream that was open here."""
        self.fail(f"{self._reason}: {error}" if error else self._reason)

    def fail(self, reason: str) -> None:
        """End every stream with UNAVAILABLE."""
        self.connection.is_closed = True
        self._gone(self, reason)
        has_reached = self.connection.has_settings  # else no instance had the requests
        failure = Failure(Code.UNAVAILABLE, f"instance {self.name}: {reason}", is_answer=False, is_death=has_reached)
        lose_all(self.connection.streams.values(), failure)

    def retire(self, reason: str) -> None:
        """Close a connection that nothing has used for a while."""
        self._reason = reason
        self.is_draining = True
        self.connection.close(ErrorCode.NO_ERROR)
        self.hub.flush()
        self.close()

    def cut(self, reason: str) -> None:
        """Give up an instance that keeps us waiting."""
        log("instance_too_slow", instance=self.name, reason=reason)
        self.fail(reason)
        self.hub.flush()
        self.close()

    def check_idle(self) -> None:
        """Close a connection that takes nothing new once its last stream has ended."""
        if self.is_draining and not self.connection.streams:
            self.close()

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.is_draining = True
        self._reason = f"connection closed with GOAWAY {event.code} {event.debug.decode('utf-8', 'replace')}".strip()
        failure = Failure(Code.UNAVAILABLE, f"instance {self.name}: {self._reason}", is_answer=False)
        streams = self.connection.streams.values()
        lose_all([each for each in streams if each.stream_id > event.last_stream_id], failure, ErrorCode.CANCEL)
        self.check_idle()


def lose_all(streams: Iterable[Stream], failure: Failure, code: int | None = None) -> None:
    """Tell whoever owns these streams that they have ended; a defect at one keeps it from no other."""
    for stream in list(streams):
        owner: Caller | None = stream.owner
        try:
            if owner is not None:
                owner.on_lost(failure, code)
        except Exception as error:  # noqa: BLE001 - as in `UpstreamLink.handle`
            end_owner(owner, error)


class Pool:
    """The connections to one instance."""

    def __init__(self, hub: Hub, name: str, route: Route, failed: Callable[[str], None]) -> None:
        """Begin without connections; `failed` learns of each that breaks."""
        self.hub = hub
        self.name = name
        self.route = route
        self.links: list[UpstreamLink] = []
        self.tally = Tally()
        self._failed = failed
        self._known_limit: int | None = None
        self._connecting: set[asyncio.Task[Any]] = set()
        self._is_retired = False

    def acquire(self) -> UpstreamLink:
        """Return a connection with room for one more stream, opening another where there is none."""
        for link in self.links:
            if not link.is_draining and link.connection.can_open():
                return link
        self._close_spent()
        link = UpstreamLink(self.hub, self.name, self.route.patience, self.tally, self._on_gone)
        if self._is_retired:  # an abort's repetition comes this late
            asyncio.get_running_loop().call_soon(link.fail, "it is not used any more")
            return link
        link.connection.peer_max_streams = self._stream_limit(link.connection.peer_max_streams)
        self.links.append(link)
        task = asyncio.get_running_loop().create_task(self._connect(link))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return link

    def _close_spent(self) -> None:
        """Close the connections without streams; none has room for any, by a limit of 0 or for want of stream ids."""
        for link in self.links:
            if link.connection.has_settings and not link.connection.streams:
                link.is_draining = True
                link.check_idle()

    def _stream_limit(self, assumed: int) -> int:
        """Return what the instance has said on another connection, until it says so on a new one."""
        for link in self.links:
            if link.connection.has_settings:
                self._known_limit = link.connection.peer_max_streams
        return assumed if self._known_limit is None else self._known_limit

    def streams(self) -> list[Stream]:
        """Return the streams that are open."""
        return [stream for link in self.links for stream in link.connection.streams.values()]

    def watch(self, now: float) -> None:
        """Judge the silence of each connection."""
        for link in list(self.links):
            link.watch(now)

    def retire(self) -> list[UpstreamLink]:
        """Open and use nothing any more; return the connections that are to be closed."""
        self._is_retired = True
        for task in self._connecting:
            task.cancel()
        for link in self.links:
            link.is_draining = True
        return list(self.links)

    async def _connect(self, link: UpstreamLink) -> None:
        route = self.route
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connect(route.address, lambda: link, route.tls, route.server_name)
        except (OSError, TimeoutError) as error:
            link.fail(f"cannot connect: {str(error) or 'timed out'}")
            self.hub.flush()

    def _on_gone(self, link: UpstreamLink, reason: str) -> None:
        if link not in self.links:
            return
        self.links.remove(link)
        if not link.is_draining:
            self._failed(reason)
