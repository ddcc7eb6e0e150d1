"""Transports and connections tied together: read, understand, act, write once.

Knows asyncio transports and `wire.Connection`. Does not know what events mean; subclasses do.
"""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Protocol, cast

from gateway.log import log_defect
from gateway.patience import Patience, Verdict, Vigil
from gateway.status import Code, Failure
from gateway.tls import speaks_http2
from gateway.wire.connection import Connection
from gateway.wire.events import DataReceived, Event, HeadersReceived, StreamReset
from gateway.wire.faults import ErrorCode
from gateway.wire.outbox import Outbox

READ_BYTES = 256 * 1024
LARGE_READ = 64 * 1024  # bytes; what they bring about is written at once, so that it does not pile up
HIGH_WATER = 256 * 1024  # bytes a transport may hold before what is queued waits
LINGER_SECONDS = 5.0  # for a peer to take what is left of a connection that is closing
GOODBYE_SECONDS = 0.5  # the same when the whole gateway ends
KEEPALIVE = b"\0alive\0\0"
OWN_DEFECT = "INTERNAL: the gateway itself has failed at this; its log says how"

_buffer = bytearray(READ_BYTES)  # shared: between `get_buffer` and `buffer_updated` nothing else runs
_view = memoryview(_buffer)


class Owner(Protocol):
    """Who stands behind a stream."""

    def on_defect(self, failure: Failure) -> None:
        """Take the end of the stream by a defect of the gateway's own."""


class Hub:
    """Everything that is to be written when what has been read by now has been handled."""

    def __init__(self) -> None:
        self.dirty: list[Outbox] = []
        self._call_soon = asyncio.get_running_loop().call_soon
        self._is_due = False

    def flush_soon(self) -> None:
        """Write when everything has been handled that can be read now: once per connection, whoever wrote to it."""
        if not self._is_due and self.dirty:
            self._is_due = True
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Write, once per connection, and again for what the writing itself brought about."""
        self._is_due = False
        while self.dirty:
            batch = self.dirty.copy()
            self.dirty.clear()
            for outbox in batch:
                try:
                    if outbox.sink is not None:
                        outbox.sink()
                except Exception as error:  # noqa: BLE001 - a defect of ours: the others are still to be written
                    log_defect("write_failed", error)


class Link:
    """One HTTP/2 connection over one transport: an `asyncio.BufferedProtocol`, which uvloop tells by its methods."""

    def __init__(self, hub: Hub, connection: Connection, patience: Patience) -> None:
        """Tie `connection` to the transport to come."""
        self.hub = hub
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()
        self._clock = self.loop.time
        now = self._clock()
        self.vigil = Vigil(patience, now, now)
        self._closing_since: float | None = None
        connection.outbox.sink = self.write

    def handle(self, event: Event) -> None:
        """Act on one event."""
        raise NotImplementedError

    def contain(self, event: Event, owner: Owner | None, error: Exception) -> None:
        """End just the stream of an event at which the gateway itself has failed, and whatever its owner stands for."""
        if not isinstance(event, HeadersReceived | DataReceived | StreamReset):
            raise error
        stream = event.stream
        end_owner(owner or stream.owner, error)  # that may just have got one
        stream.owner = None
        if not self.connection.is_server or stream.ending is None:  # else its client is being told, and it ends by that
            self.connection.reset(stream, ErrorCode.INTERNAL_ERROR)

    def lost(self, error: Exception | None) -> None:
        """Act on the end of the connection."""
        raise NotImplementedError

    def retire(self, reason: str) -> None:
        """Act on a connection that has been idle for too long."""
        raise NotImplementedError

    def cut(self, reason: str) -> None:
        """Act on a peer that has kept us waiting for too long."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and write what waits for it."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.vigil.began_at = self.vigil.read_at = self.loop.time()
        if not speaks_http2(transport.get_extra_info("ssl_object")):
            self.connection.close(ErrorCode.INADEQUATE_SECURITY, "the TLS peer did not choose h2 by ALPN")
        self.write()
        if self.connection.is_closed:
            self.close()

    def watch(self, now: float) -> None:
        """Judge the peer's silence; called now and then."""
        connection = self.connection
        if self.transport is None:
            return
        if self._closing_since is not None:
            if now - self._closing_since > LINGER_SECONDS:
                self.transport.abort()
            return
        verdict = self.vigil.judge(now, connection.has_settings, connection.incomplete_since, len(connection.streams))
        if verdict is Verdict.PING:
            connection.ping(KEEPALIVE)
        elif verdict is Verdict.DRAIN:
            self.retire(self.vigil.reason)
        elif verdict is Verdict.CUT:
            self.cut(self.vigil.reason)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Hand out the room behind the bytes that are left from the last read."""
        tail = self.connection.tail
        if not tail:
            return _view
        _buffer[: len(tail)] = tail
        return _view[len(tail) :]

    def buffer_updated(self, nbytes: int) -> None:
        """Understand what was read, act on it and write."""
        end = len(self.connection.tail) + nbytes
        now = self.vigil.read_at = self._clock()
        self.connection.receive(_buffer, end, now, self.handle)
        if self.connection.is_closed:
            self.hub.flush()
            self.close()
        elif nbytes < LARGE_READ:
            self.hub.flush_soon()
        else:
            self.hub.flush()

    def eof_received(self) -> None:
        """Have the transport closed: a peer that sends no more has gone."""

    def pause_writing(self) -> None:
        """Keep further DATA queued: the transport is full."""
        self.connection.outbox.paused = True

    def resume_writing(self) -> None:
        """Send what was queued meanwhile."""
        self.connection.outbox.paused = False
        self.connection.outbox.flush_all()
        self.hub.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the subclass, once."""
        self.connection.is_closed = True
        self.transport = None
        self.lost(exc)
        self.hub.flush()

    def close(self) -> None:
        """Write what is left and close the transport."""
        if self.transport is not None and not self.transport.is_closing():
            self._closing_since = self.loop.time()
            self.transport.close()

    def abort(self) -> None:
        """End the transport without waiting for the peer."""
        if self.transport is not None:
            self.transport.abort()

    def write(self) -> None:
        """Hand the transport what is to go out, and tell whose it was."""
        outbox = self.connection.outbox
        if outbox.chunks and self.transport is not None:
            self.transport.write(outbox.take())
        if outbox.released:
            released, outbox.released = outbox.released, []
            for owner, size in released:
                try:
                    owner.written(size)
                except Exception as error:  # noqa: BLE001 - a defect of ours: the others are still to be told
                    end_owner(owner, error)
        if outbox.ended:
            self.connection.sweep()


def end_owner(owner: Owner | None, error: Exception) -> None:
    """Write down a defect of the gateway's own, and have whoever it hit end."""
    log_defect("handler_failed", error, of=type(owner).__name__)
    try:
        if owner is not None:
            owner.on_defect(Failure(Code.INTERNAL, OWN_DEFECT, is_answer=False))
    except Exception as second:  # noqa: BLE001 - it is in a state that nobody foresaw
        log_defect("handler_failed", second, of=type(owner).__name__)


async def close_links(links: Collection[Link], hub: Hub) -> None:
    """Say goodbye on all connections, give the peers a moment to take it, then cut what is left."""
    for link in links:
        link.connection.close()
    hub.flush()
    for link in links:
        link.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            while any(link.transport is not None for link in links):
                await asyncio.sleep(0.01)
    for link in links:
        link.abort()
    await asyncio.sleep(0)  # for the transports to note it
