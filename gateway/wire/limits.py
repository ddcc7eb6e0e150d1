"""What one connection lets its peer ask for: sizes, counts and rates. Knows numbers, not who keeps to them."""

from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` events at once, `per_second` from then on."""

    burst: int
    per_second: float

    def __post_init__(self) -> None:
        """Refuse what would let nothing pass."""
        if self.burst < 1 or self.per_second < 0:
            raise ValueError(f"a rate needs a burst of at least 1 and no negative refill, not {self}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one connection; each that is exceeded ends the connection with ENHANCE_YOUR_CALM.

    `max_streams` only refuses the stream. `resets` counts the peer's RST_STREAM and the faults that make us send one.
    """

    max_streams: int = 4096
    max_header_block_bytes: int = 64 * 1024
    max_header_list_bytes: int = 64 * 1024
    max_continuations: int = 16
    resets: Rate = field(default=Rate(4096, 400))
    pings: Rate = field(default=Rate(2000, 200))
    settings: Rate = field(default=Rate(100, 10))
    idle_frames: Rate = field(default=Rate(2000, 200))  # empty DATA, PRIORITY and unknown types: they ask for nothing

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - for whoever reads limits from a file

    def __post_init__(self) -> None:
        """Refuse limits that nobody could keep."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{item.name} must be at least 1, not {value}")


DEFAULT_LIMITS = Limits()
