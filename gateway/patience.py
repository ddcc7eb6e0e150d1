"""How long a connection's peer may keep us waiting, and what is done about it.

Knows limits in seconds, a given time and what a connection says of itself. Does not know sockets or streams.

Invariant: a peer that lets no byte arrive for `keepalive_s` + `keepalive_timeout_s` is gone, and one that holds an
incomplete preface, frame or header block for longer than its limit is too, whatever else it sends.
"""

from dataclasses import dataclass, field, fields
from enum import Enum, auto

from gateway.wire.limits import meaning

SMALLEST_INTERVAL, LARGEST_INTERVAL = 0.02, 1.0
LOOKS_PER_LIMIT = 8  # so that a limit is kept to within an eighth of it


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds, above 0, a peer may keep us waiting; null is for ever."""

    preface_s: float | None = field(
        default=10.0, metadata=meaning("seconds from the connection to the peer's SETTINGS, without the TLS handshake")
    )
    frame_s: float | None = field(
        default=20.0, metadata=meaning("seconds from the first byte of a frame or header block to its last")
    )
    message_s: float | None = field(
        default=120.0, metadata=meaning("seconds from the first byte of a request to its last")
    )
    keepalive_s: float | None = field(default=60.0, metadata=meaning("seconds of silence, then a ping"))
    keepalive_timeout_s: float = field(default=20.0, metadata=meaning("seconds of silence after that ping"))
    idle_s: float | None = field(default=None, metadata=meaning("seconds without any stream"))

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - for whoever reads limits from a file

    def __post_init__(self) -> None:
        """Refuse times that nobody could keep."""
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value <= 0:
                raise ValueError(f"{item.name} must be above 0, not {value}")

    @property
    def interval(self) -> float:
        """How often to look, in seconds."""
        limits = [value for item in fields(self) if (value := getattr(self, item.name)) is not None]
        return min(LARGEST_INTERVAL, max(SMALLEST_INTERVAL, min(limits) / LOOKS_PER_LIMIT))


class Verdict(Enum):
    """What is to be done."""

    NOTHING = auto()
    PING = auto()
    DRAIN = auto()
    CUT = auto()


@dataclass(slots=True)
class Vigil:
    """The watch over one connection."""

    patience: Patience
    began_at: float
    read_at: float  # when bytes last arrived; set by whoever reads
    pinged_at: float | None = None
    idle_since: float | None = None
    reason: str = ""  # of the last verdict to drain or cut

    def judge(self, now: float, greeted: bool, incomplete_since: float | None, num_streams: int) -> Verdict:
        """Return what is to be done now.

        Args:
            now: seconds.
            greeted: whether the peer's preface and settings have come.
            incomplete_since: when the frame or header block that is under way began, if any.
            num_streams: streams open on the connection.
        """
        patience = self.patience
        if not greeted and _exceeds(now, self.began_at, patience.preface_s):
            return self._cut(f"no preface and settings within {patience.preface_s:g} s")
        if _exceeds(now, incomplete_since, patience.frame_s):
            return self._cut(f"a frame or header block not complete within {patience.frame_s:g} s")
        verdict = self._keep_alive(now)
        return self._idle(now, num_streams) if verdict is Verdict.NOTHING else verdict

    def _keep_alive(self, now: float) -> Verdict:
        patience = self.patience
        if self.pinged_at is not None and self.read_at >= self.pinged_at:
            self.pinged_at = None
        if self.pinged_at is not None:
            if _exceeds(now, self.pinged_at, patience.keepalive_timeout_s):
                return self._cut(f"no answer to a ping within {patience.keepalive_timeout_s:g} s")
        elif _exceeds(now, self.read_at, patience.keepalive_s):
            self.pinged_at = now
            return Verdict.PING
        return Verdict.NOTHING

    def _idle(self, now: float, num_streams: int) -> Verdict:
        if num_streams:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        elif _exceeds(now, self.idle_since, self.patience.idle_s):
            self.reason = f"no stream for {self.patience.idle_s:g} s"
            return Verdict.DRAIN
        return Verdict.NOTHING

    def _cut(self, reason: str) -> Verdict:
        self.reason = reason
        return Verdict.CUT


def _exceeds(now: float, since: float | None, limit: float | None) -> bool:
    return since is not None and limit is not None and now - since > limit
