"""Two links joined within the process: what one writes the other reads, with no socket between.

Knows the two ends and the order of bytes. Does not know what they mean.

Invariants:
1. As with a socket, what is written arrives in a later turn of the loop, in order, and the end behind it: nothing is
   read within a write.
2. Each end hears of the end of the connection once.

Nothing here holds bytes back, since both ends write within the windows that the other gives.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gateway.link import Link


class JoinedTransport:
    """What one of the two links writes to; has as much of `asyncio.Transport` as a link uses."""

    def __init__(self, link: Link, peer: Link, name: str) -> None:
        """Carry bytes from `link` to `peer`; `name` says who that is."""
        self.link = link
        self.peer = peer
        self._name = name
        self._on_the_way: deque[bytes | bytearray] = deque()
        self._is_due = False
        self._is_closing = False

    def write(self, data: bytes | bytearray) -> None:
        """Have the peer read this soon."""
        if self._is_closing:
            return
        self._on_the_way.append(data)
        if not self._is_due:
            self._is_due = True
            self.link.loop.call_soon(self._deliver)

    def close(self) -> None:
        """End both directions, once the peer has read everything."""
        if not self._is_closing:
            self._is_closing = True
            self.link.loop.call_soon(self._end)

    abort = close

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_closing

    def get_extra_info(self, name: str) -> Any:
        """Return who is at the other end; there is no TLS between them."""
        return self._name if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        """Take all: nothing waits here for a peer to read it."""

    def _deliver(self) -> None:
        self._is_due = False
        peer = self.peer
        connection = peer.connection
        while self._on_the_way and peer.transport is not None:
            data = connection.tail + self._on_the_way.popleft()
            connection.receive(bytearray(data), len(data), peer.loop.time(), peer.handle)
        if connection.is_closed:
            peer.hub.flush()
            peer.close()
        else:
            peer.hub.flush_soon()

    def _end(self) -> None:
        for link in (self.peer, self.link):
            if isinstance(link.transport, JoinedTransport):
                link.transport._is_closing = True
                link.connection_lost(None)


def join(one: Link, other: Link, names: tuple[str, str]) -> None:
    """Connect two links, which their logs call by these names."""
    ends = JoinedTransport(one, other, names[1]), JoinedTransport(other, one, names[0])
    for end in ends:
        end.link.connection_made(end)  # type: ignore[arg-type]
