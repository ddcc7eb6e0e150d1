"""One HTTP/2 stream: its state as a table (RFC 9113, section 5.1), its windows, and what waits to be sent on it.

Knows one stream. Does not know other streams or what the bytes mean.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, NoReturn

from gateway.wire.faults import ErrorCode, StreamFault

if TYPE_CHECKING:
    from gateway.wire.outbox import Outbox
    from gateway.wire.recording import Recording


class State(IntEnum):
    """Where a stream stands, seen from this side."""

    IDLE = auto()
    OPEN = auto()
    HALF_CLOSED_LOCAL = auto()
    HALF_CLOSED_REMOTE = auto()
    CLOSED = auto()


class Move(IntEnum):
    """What either side may do to a stream."""

    SEND_HEADERS = auto()
    SEND_DATA = auto()
    SEND_END = auto()
    RECV_HEADERS = auto()
    RECV_DATA = auto()
    RECV_END = auto()
    RESET = auto()


# by names of their own, as plain numbers: to look a member up in its class takes 0.14 us in Python 3.11
IDLE, OPEN, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE, CLOSED = map(int, State)
SEND_HEADERS, SEND_DATA, SEND_END, RECV_HEADERS, RECV_DATA, RECV_END, RESET = map(int, Move)

TRANSITIONS: dict[tuple[int, int], int] = {
    (IDLE, SEND_HEADERS): OPEN,
    (IDLE, RECV_HEADERS): OPEN,
    (OPEN, SEND_HEADERS): OPEN,
    (OPEN, RECV_HEADERS): OPEN,
    (OPEN, SEND_DATA): OPEN,
    (OPEN, RECV_DATA): OPEN,
    (OPEN, SEND_END): HALF_CLOSED_LOCAL,
    (OPEN, RECV_END): HALF_CLOSED_REMOTE,
    (OPEN, RESET): CLOSED,
    (HALF_CLOSED_LOCAL, RECV_HEADERS): HALF_CLOSED_LOCAL,
    (HALF_CLOSED_LOCAL, RECV_DATA): HALF_CLOSED_LOCAL,
    (HALF_CLOSED_LOCAL, RECV_END): CLOSED,
    (HALF_CLOSED_LOCAL, RESET): CLOSED,
    (HALF_CLOSED_REMOTE, SEND_HEADERS): HALF_CLOSED_REMOTE,
    (HALF_CLOSED_REMOTE, SEND_DATA): HALF_CLOSED_REMOTE,
    (HALF_CLOSED_REMOTE, SEND_END): CLOSED,
    (HALF_CLOSED_REMOTE, RESET): CLOSED,
}

NEXT = [[], *([0, *(TRANSITIONS.get((state, move), 0) for move in Move)] for state in State)]  # 0 where there is none


class Stream:
    """A stream and its two windows, in bytes.

    `owner` and `target` belong to whoever relays: the object behind the stream, and the stream that its DATA goes on to
    while it is in the express lane (see `express`), where `lane_credit` bytes may pass; a full `recording` closes it.
    What begins with `lane_` is there from then on: the target's stream id and its outbox's chunks, the credit as it was
    when last renewed, and as it was when the target's windows were last told.
    """

    __slots__ = (
        "announced",
        "consumed",
        "ending",
        "is_wide",
        "lane_chunks",
        "lane_credit",
        "lane_id",
        "lane_start",
        "lane_told",
        "outbox",
        "owner",
        "queue",
        "recording",
        "recv_window",
        "send_window",
        "state",
        "stream_id",
        "target",
    )  # fmt: skip

    lane_id: int
    lane_chunks: list[bytes | bytearray]
    lane_start: int
    lane_credit: int
    lane_told: int

    def __init__(self, stream_id: int, outbox: Outbox, send_window: int, recv_window: int) -> None:
        """Begin idle."""
        self.stream_id = stream_id
        self.outbox = outbox
        self.send_window = send_window
        self.recv_window = recv_window
        self.state = IDLE  # the number of a `State`
        self.queue: deque[tuple[bytes | memoryview, Any]] | None = None  # pieces and their owners, once one had to wait
        self.ending: bytes | None = None  # trailers behind the queue; b"" is END_STREAM on the last DATA
        self.consumed = 0  # received and passed on, not yet given back to the peer
        self.announced: int | None = None  # DATA still to come by the request's content length
        self.owner: Any = None
        self.target: Stream | None = None
        self.is_wide = False  # of its lane, while `express.forward` runs
        self.recording: Recording | None = None  # of all that went through the lane, where one is wanted

    def wait(self, piece: bytes | memoryview, owner: Any, first: bool = False) -> None:
        """Have a piece wait to be sent, behind all others or before them."""
        if self.queue is None:
            self.queue = deque()
        if first:
            self.queue.appendleft((piece, owner))
        else:
            self.queue.append((piece, owner))

    def move(self, move: int) -> None:
        """Take one step in the table; where a call would count, callers do this by themselves.

        Raises:
            StreamFault: the table has no such step.
        """
        self.state = NEXT[self.state][move] or self.refuse(move)

    def refuse(self, move: int) -> NoReturn:
        """Say that the table has no such step.

        Raises:
            StreamFault: always.
        """
        message = f"{Move(move).name} on stream {self.stream_id} in state {State(self.state).name}"
        raise StreamFault(self.stream_id, ErrorCode.STREAM_CLOSED, message)

    def can_send(self) -> bool:
        """Whether our side may still send; no property, which compiled code would ask for as Python does."""
        return self.ending is None and (self.state == OPEN or self.state == HALF_CLOSED_REMOTE)  # noqa: PLR1714 - faster
