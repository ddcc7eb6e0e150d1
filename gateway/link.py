"""Transports and connections tied together: read, understand, act, write once.

Knows asyncio transports and `wire.Connection`. Does not know what events mean; subclasses do.
"""

import asyncio
from typing import cast

from gateway.wire.connection import Connection
from gateway.wire.events import Event
from gateway.wire.outbox import Outbox

READ_BYTES = 256 * 1024
HIGH_WATER = 256 * 1024  # bytes a transport may hold before what is queued waits

_buffer = bytearray(READ_BYTES)  # shared: between `get_buffer` and `buffer_updated` nothing else runs
_view = memoryview(_buffer)


class Hub:
    """Everything that is to be written when the current event has been handled."""

    def __init__(self) -> None:
        self.dirty: list[Outbox] = []

    def flush(self) -> None:
        """Write, once per connection, and again for what the writing itself brought about."""
        while self.dirty:
            batch = self.dirty.copy()
            self.dirty.clear()
            for outbox in batch:
                if outbox.sink is not None:
                    outbox.sink()


class Link(asyncio.BufferedProtocol):
    """One HTTP/2 connection over one transport."""

    def __init__(self, hub: Hub, connection: Connection) -> None:
        """Tie `connection` to the transport to come."""
        self.hub = hub
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()
        connection.outbox.sink = self._write

    def handle(self, event: Event) -> None:
        """Act on one event."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """Act on the end of the connection."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and write what waits for it."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._write()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Hand out the room behind the bytes that are left from the last read."""
        tail = self.connection.tail
        if tail:
            _buffer[: len(tail)] = tail
        return _view[len(tail) :]

    def buffer_updated(self, nbytes: int) -> None:
        """Understand what was read, act on it and write."""
        end = len(self.connection.tail) + nbytes
        for event in self.connection.receive(_buffer, end, self.loop.time()):
            self.handle(event)
        self.hub.flush()
        if self.connection.is_closed:
            self.close()

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
            self.transport.close()

    def _write(self) -> None:
        outbox = self.connection.outbox
        if outbox.chunks and self.transport is not None:
            self.transport.write(outbox.take())
        released, outbox.released = outbox.released, []
        for owner, size in released:
            owner.written(size)
        if outbox.ended:
            self.connection.sweep()
