"""The answers of several requests on one client stream, put in an order that it can carry.

Knows pieces of answers and where messages end. Does not know how requests end.

Invariants:
1. Answers of several requests meet only at message boundaries: `holder` is the request within a message, if any.
2. Pieces of one request keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.request import Request
    from gateway.wire.outbox import Outbox
    from gateway.wire.stream import Stream


class Turns:
    """Whose piece goes next."""

    def __init__(self, outbox: Outbox, stream: Stream, requests: Iterable[Request]) -> None:
        """Send on `stream`; `requests` are those open on it at any time."""
        self.holder: Request | None = None
        self.held: deque[tuple[Request, bytes, bool]] = deque()
        self._outbox = outbox
        self._stream = stream
        self._requests = requests

    @property
    def is_free(self) -> bool:
        """Whether a message of any request may go at once."""
        return self.holder is None and not self.held

    def take(self, request: Request, pieces: list[tuple[bytes, bool]]) -> None:
        """Send pieces, each with whether it ends a message, or hold them while another request is within one."""
        for piece, ends in pieces:
            if self.holder is None or self.holder is request:
                self._send(request, piece, ends)
            else:
                self.held.append((request, piece, ends))
        if self.held and self.holder is None:
            self._send_held()

    def abandon(self, request: Request) -> None:
        """Drop the held beginning of a message that will get no end; what is whole still goes."""
        kept: deque[tuple[Request, bytes, bool]] = deque()
        is_cut = True
        for item in reversed(self.held):
            if item[0] is request:
                is_cut = is_cut and not item[2]
                if is_cut:
                    continue
            kept.appendleft(item)
        self.held = kept

    def _send(self, request: Request, piece: bytes, ends: bool) -> None:
        if not ends and self.holder is None:
            for other in self._requests:
                other.leave_lane()
        self.holder = None if ends else request
        self._outbox.send_data(self._stream, piece, request)

    def _send_held(self) -> None:
        """Send the first held piece that may go, again and again, so that each request's pieces keep their order."""
        while True:
            sendable = (i for i, (request, _, _) in enumerate(self.held) if self.holder in {None, request})
            index = next(sendable, None)
            if index is None:
                return
            request, piece, ends = self.held[index]
            del self.held[index]
            self._send(request, piece, ends)
