"""What one connection lets its peer ask for: sizes, counts and rates. Knows numbers, not who keeps to them."""

from dataclasses import dataclass, field, fields

MEANING = "meaning"


def meaning(text: str) -> dict[str, str]:
    """Return a field's metadata with what the help of the configuration says of it."""
    return {MEANING: text}


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` events at once, `per_second` from then on."""

    burst: int = field(metadata=meaning("events at once, at least 1"))
    per_second: float = field(metadata=meaning("events a second from then on, 0 for none"))

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - as below

    def __post_init__(self) -> None:
        """Refuse what would let nothing pass."""
        if self.burst < 1 or self.per_second < 0:
            raise ValueError(f"a rate needs a burst of at least 1 and no negative refill, not {self}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one connection, above 0; exceeding any but `max_streams` ends it with ENHANCE_YOUR_CALM."""

    max_streams: int = field(default=4096, metadata=meaning("streams open at once; more are refused"))
    max_header_block_bytes: int = field(default=64 * 1024, metadata=meaning("bytes of an encoded header block"))
    max_header_list_bytes: int = field(default=64 * 1024, metadata=meaning("bytes of a decoded header list"))
    max_continuations: int = field(default=16, metadata=meaning("CONTINUATION frames of a header block"))
    resets: Rate = field(
        default=Rate(4096, 400), metadata=meaning("streams that the peer resets, or by its faults has us reset")
    )
    pings: Rate = field(
        default=Rate(2000, 200), metadata=meaning("PING frames; filled again while data flows to the peer")
    )
    settings: Rate = field(default=Rate(100, 10), metadata=meaning("SETTINGS frames, acknowledgements too"))
    idle_frames: Rate = field(
        default=Rate(2000, 200), metadata=meaning("frames that ask for nothing: empty DATA, PRIORITY, unknown types")
    )
    updates: Rate = field(
        default=Rate(2000, 200), metadata=meaning("WINDOW_UPDATE frames beyond those that answer data sent or streams")
    )

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - for whoever reads limits from a file

    def __post_init__(self) -> None:
        """Refuse limits that nobody could keep."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{item.name} must be at least 1, not {value}")


DEFAULT_LIMITS = Limits()
