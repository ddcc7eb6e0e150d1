"""What is seen of one answer as it passes: when it came and what its messages said.

Knows the bytes of one request's responses. Does not know where they go, and changes nothing about them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.tensors import RAW_OUTPUTS, clock_of, float_of, int_of, pack_texts, read_outputs
from gateway.wire.messages import MessageReader, MessageTooLarge
from gateway.wire.protobuf import MalformedMessage, encode_field

MAX_MESSAGE_BYTES = 16 * 2**20  # of a larger one nothing is known
ERROR_TAG = b"\x0a"  # field 1 of ModelStreamInferResponse; an error comes first
COUNTS = b"completion_tokens"
ENDS = tuple(  # how a finish reason looks in a message
    encode_field(RAW_OUTPUTS, pack_texts([reason])) for reason in (b"stop", b"length", b"cancelled", b"deadline")
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and times as the engine reports them; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    ttft_seconds: float | None = None
    e2e_seconds: float | None = None
    clock_ns: tuple[int, int] | None = None  # when Triton and when the engine had the request

    @property
    def tokens(self) -> int | None:
        """All tokens, where both counts are known."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Observer:
    """Watches one request; a request with one takes no part in the express lane."""

    last_ns: int = 0
    num_messages: int = 0
    num_errors: int = 0
    note_gap: Callable[[float], None] | None = None  # takes the seconds between two arrivals
    _telling: bytes = b""  # the latest message with counts
    _ends: list[bytes] = field(default_factory=list)  # those that end a sequence
    _reader: MessageReader | None = field(default_factory=lambda: MessageReader(MAX_MESSAGE_BYTES))

    def take(self, payload: bytes) -> None:
        """Look at a part of the answer."""
        if self._reader is None:
            return
        try:
            messages = self._reader.feed(payload)
        except MessageTooLarge:
            self._reader = None
            return
        if messages:
            self._note_time(time.time_ns())
        for _, body in messages:
            self.num_messages += 1
            self.num_errors += body[:1] == ERROR_TAG
            if COUNTS in body:
                self._telling = body
                if any(end in body for end in ENDS):
                    self._ends.append(body)

    def begin_again(self) -> None:
        """Forget a message that was under way: what follows comes from another instance."""
        if self._reader is not None:
            self._reader = MessageReader(MAX_MESSAGE_BYTES)

    def usage(self) -> Usage:
        """Return what the latest message said, with the tokens of all sequences."""
        try:
            outputs = read_outputs(self._telling)
            known = [*map(read_outputs, self._ends), outputs]
        except MalformedMessage:
            return Usage()
        counts = {int_of(item, "sequence_index"): int_of(item, "completion_tokens") for item in known}
        return Usage(
            prompt_tokens=int_of(outputs, "prompt_tokens"),
            completion_tokens=None if None in counts.values() else sum(filter(None, counts.values())),
            cached_tokens=int_of(outputs, "cached_tokens"),
            queue_seconds=float_of(outputs, "queue_seconds"),
            ttft_seconds=float_of(outputs, "ttft_seconds"),
            e2e_seconds=float_of(outputs, "e2e_seconds"),
            clock_ns=clock_of(outputs),
        )

    def tokens_used(self) -> int | None:
        """Return how many tokens to charge: none where nothing was answered, None where nobody said."""
        if self.num_messages == self.num_errors:
            return 0
        return self.usage().tokens

    def _note_time(self, now: int) -> None:
        if self.last_ns and self.note_gap is not None:
            self.note_gap((now - self.last_ns) / 1e9)
        self.last_ns = now
