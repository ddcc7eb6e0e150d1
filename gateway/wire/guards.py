"""Keeps count of what a peer makes us do, and ends the connection of one that goes too far (ENHANCE_YOUR_CALM).

Knows limits, counts and a given time. Does not know frames. Rates are token buckets: a burst is allowed, a stream of
them is not. A client that cancels its thousand streams at once, or pings while data flows to it, stays below them.
"""

from gateway.wire.faults import ConnectionFault, ErrorCode
from gateway.wire.limits import Limits, Rate


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
