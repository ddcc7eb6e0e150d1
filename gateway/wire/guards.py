"""Keeps count of what a peer makes us do, and ends the connection of one that goes too far (ENHANCE_YOUR_CALM).

Knows limits, counts and a given time. Does not know frames. Rates are token buckets: a burst is allowed, a stream of
them is not. A client that cancels its thousand streams at once, or pings while data flows to it, stays below them.
Window updates are counted against what they answer: streams, bytes sent, and pieces that had to wait for a window. So
a client that reads little at a time is let be; only those beyond that are a flood (Envoy has such a limit, by frames).
"""

from gateway.wire.faults import ConnectionFault, ErrorCode
from gateway.wire.limits import Limits, Rate

BYTES_PER_UPDATE = 16  # two updates for each frame of ours that a client reads are no flood; a token's frame has 150
UPDATES_PER_ANSWERED = 4


class Bucket:
    """One rate and what is left of it; the first event fills it."""

    __slots__ = ("rate", "seen_at", "tokens", "what")

    def __init__(self, what: str, rate: Rate) -> None:
        """Begin full; `what` names the events in the fault."""
        self.what = what
        self.rate = rate
        self.tokens: float = rate.burst
        self.seen_at: float | None = None

    def spend(self, now: float) -> None:
        """Count one event at `now` seconds.

        Raises:
            ConnectionFault: the burst is used up.
        """
        if self.seen_at is not None:
            self.tokens = min(self.rate.burst, self.tokens + (now - self.seen_at) * self.rate.per_second)
        self.seen_at = now
        self.tokens -= 1
        if self.tokens < 0:
            message = f"more than {self.rate.burst} {self.what} above {self.rate.per_second:g}/s"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)

    def refill(self) -> None:
        """Forget what was counted."""
        self.tokens = self.rate.burst


class Guards:
    """The buckets of one connection."""

    def __init__(self, limits: Limits) -> None:
        """Begin with every bucket full."""
        self.limits = limits
        self.resets = Bucket("stream resets", limits.resets)
        self.pings = Bucket("pings", limits.pings)
        self.settings = Bucket("settings frames", limits.settings)
        self.idle_frames = Bucket("frames that ask for nothing", limits.idle_frames)
        self.updates = Bucket("window updates that answer nothing", limits.updates)
        self._num_updates = 0  # those that answer something

    def count_update(self, bytes_sent: int, num_answered: int, now: float) -> None:
        """Count a WINDOW_UPDATE at `now` seconds; so many bytes, and streams or waiting pieces, can be answered.

        Raises:
            ConnectionFault: too many of them answer nothing.
        """
        if self._num_updates < bytes_sent // BYTES_PER_UPDATE + UPDATES_PER_ANSWERED * num_answered:
            self._num_updates += 1
        else:
            self.updates.spend(now)

    def check_header_block(self, num_bytes: int, num_continuations: int) -> None:
        """Refuse a header block that grows without end.

        Raises:
            ConnectionFault: too many bytes or CONTINUATION frames.
        """
        if num_bytes > self.limits.max_header_block_bytes:
            message = f"a header block of {num_bytes} bytes; the limit is {self.limits.max_header_block_bytes}"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)
        if num_continuations > self.limits.max_continuations:
            message = f"{num_continuations} CONTINUATION frames; the limit is {self.limits.max_continuations}"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)
