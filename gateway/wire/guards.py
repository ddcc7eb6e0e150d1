"""Limits on what a peer may make us do, each answered with GOAWAY ENHANCE_YOUR_CALM.

Knows counts and a given time. Does not know frames. Rates are token buckets: a burst is allowed, a
stream of them is not. A client that cancels its thousand streams at once, or pings while data flows to it, stays
below them.
"""

from dataclasses import dataclass, field

from gateway.wire.faults import ConnectionFault, ErrorCode

MAX_HEADER_BLOCK_BYTES = 64 * 1024
MAX_HEADER_LIST_BYTES = 64 * 1024
MAX_CONTINUATIONS = 16
RESET_BURST, RESETS_PER_SECOND = 4096, 400
PING_BURST, PINGS_PER_SECOND = 2000, 200
SETTINGS_BURST, SETTINGS_PER_SECOND = 100, 10
EMPTY_DATA_BURST, EMPTY_DATA_PER_SECOND = 2000, 200
PRIORITY_BURST, PRIORITIES_PER_SECOND = 2000, 200


@dataclass(slots=True)
class RateLimit:
    """A token bucket; the first event fills it."""

    what: str
    burst: int
    per_second: float
    tokens: float = field(init=False)
    seen_at: float | None = None

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def spend(self, now: float) -> None:
        """Count one event at `now` seconds.

        Raises:
            ConnectionFault: the burst is used up.
        """
        if self.seen_at is not None:
            self.tokens = min(self.burst, self.tokens + (now - self.seen_at) * self.per_second)
        self.seen_at = now
        self.tokens -= 1
        if self.tokens < 0:
            message = f"more than {self.burst} {self.what} above {self.per_second:g}/s"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)


class Guards:
    """The rate limits of one connection."""

    def __init__(self) -> None:
        self.resets = RateLimit("stream resets", RESET_BURST, RESETS_PER_SECOND)
        self.pings = RateLimit("pings", PING_BURST, PINGS_PER_SECOND)
        self.settings = RateLimit("settings frames", SETTINGS_BURST, SETTINGS_PER_SECOND)
        self.empty_data = RateLimit("empty data frames", EMPTY_DATA_BURST, EMPTY_DATA_PER_SECOND)
        self.priorities = RateLimit("priority frames", PRIORITY_BURST, PRIORITIES_PER_SECOND)


def check_header_block(num_bytes: int, num_continuations: int) -> None:
    """Refuse a header block that grows without end.

    Raises:
        ConnectionFault: too many bytes or CONTINUATION frames.
    """
    if num_bytes > MAX_HEADER_BLOCK_BYTES:
        message = f"a header block of {num_bytes} bytes; the limit is {MAX_HEADER_BLOCK_BYTES}"
        raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)
    if num_continuations > MAX_CONTINUATIONS:
        message = f"{num_continuations} CONTINUATION frames; the limit is {MAX_CONTINUATIONS}"
        raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)
