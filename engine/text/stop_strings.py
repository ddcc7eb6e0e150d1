"""Does the text of a sequence contain a stop string, and how much of it is safe to show?

Knows tokens, their text and the stop strings of one sequence. Does not know sampling, other reasons to stop or who
reads the text.

Invariants:
1. The result depends on the text alone, not on how tokens split it: reading character by character, the first stop
   string to be complete ends the text; of several complete at the same character the one that began first counts.
2. The text of released tokens, less `trim_chars` of the last release, never holds a stop string nor the part of one
   that ends the sequence; and released plus held-back tokens are always all tokens.
3. Tokens are released at clean boundaries only, and only once no stop string can begin in their text any more.

A sequence that ends for another reason releases everything: the caller then sends on all tokens, nothing trimmed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.text.detokenizer import chunk_text, clean_length, shorten_context, visible
from engine.text.tokenizer import REPLACEMENT, Tokenizer


@dataclass(slots=True, frozen=True)
class StopResult:
    """What is known after some tokens.

    Attributes:
        releasable: how many of the tokens generated so far may be sent on; where `stopped`, all of those that count.
        stopped: a stop string is complete; tokens after number `releasable` are no part of the completion.
        trim_chars: characters to drop from the end of the text of the released tokens.
    """

    releasable: int
    stopped: bool = False
    trim_chars: int = 0


class StopStringChecker:
    """Watches one sequence for its stop strings; costs a decode of a few tokens per pushed token."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        """Watch for the strings of `stop`, none of them empty; with none of them every token is released at once."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._borders = [_borders(s) for s in stop]
        self._matched = [0] * len(stop)  # per stop string: how many of its characters the clean text ends with
        self._num_tokens = 0
        self._num_released = 0
        self._num_chars = 0  # of the clean text: the text up to the last clean boundary
        self._held: list[int] = []  # tokens after the last clean boundary
        self._context: list[int] = []
        self._unreleased: deque[tuple[int, int]] = deque()  # (tokens, characters) up to each clean boundary
        self._deaf_until = 0  # stop strings that end before this character do not count

    def push(self, token_ids: Sequence[int], *, armed: bool = True) -> StopResult:
        """Read the tokens generated since the last push.

        Args:
            token_ids: new tokens, in order.
            armed: False while the sequence is too short to stop: strings completed by these tokens never count.
        """
        for token_id in token_ids:
            self._num_tokens += 1
            if not self._stop:
                self._num_released = self._num_tokens
                continue
            start = self._push_one(token_id, armed)
            if start is not None:
                total = self._num_chars + len(self._held_text())
                return StopResult(releasable=self._num_tokens, stopped=True, trim_chars=total - start)
        return StopResult(releasable=self._num_released)

    def _push_one(self, token_id: int, armed: bool) -> int | None:
        """Take one token; return the character at which a stop string that is now complete begins."""
        self._held.append(token_id)
        num_clean = clean_length(self._tokenizer, self._held)
        tail = chunk_text(self._tokenizer, self._held, self._context).rstrip(REPLACEMENT) if num_clean == 0 else ""
        clean = self._take_clean(num_clean) if num_clean else ""
        if num_clean and self._held:
            tail = self._held_text().rstrip(REPLACEMENT)
        if not armed:
            self._deaf_until = max(self._deaf_until, self._num_chars + len(clean) + len(tail))
        start = self._scan(self._matched, clean, self._num_chars)
        self._num_chars += len(clean)
        if start is None and tail:
            start = self._scan(list(self._matched), tail, self._num_chars)
        if num_clean:
            self._release()
        return start

    def _take_clean(self, num_clean: int) -> str:
        ready, self._held = self._held[:num_clean], self._held[num_clean:]
        text = chunk_text(self._tokenizer, ready, self._context)
        self._context = shorten_context(self._tokenizer, self._context + visible(self._tokenizer, ready))
        self._unreleased.append((self._num_tokens - len(self._held), self._num_chars + len(text)))
        return text

    def _held_text(self) -> str:
        return chunk_text(self._tokenizer, self._held, self._context) if self._held else ""

    def _scan(self, matched: list[int], text: str, offset: int) -> int | None:
        """Read `text`, which begins at character `offset`, onwards from the state `matched`, changing it."""
        for end, char in enumerate(text, offset + 1):
            first: int | None = None
            for index, stop in enumerate(self._stop):
                length = _advance(stop, self._borders[index], matched[index], char)
                if length == len(stop):
                    length = self._borders[index][length]
                    if end > self._deaf_until:
                        first = min(end - len(stop), end if first is None else first)
                matched[index] = length
            if first is not None:
                return first
        return None

    def _release(self) -> None:
        """Release the tokens before the longest end of the text that may be the beginning of a stop string."""
        safe_chars = self._num_chars - max(self._matched)
        while self._unreleased and self._unreleased[0][1] <= safe_chars:
            self._num_released = self._unreleased.popleft()[0]


def _advance(stop: str, borders: Sequence[int], matched: int, char: str) -> int:
    """Return how long a beginning of `stop` the text ends with, after one more character (Knuth, Morris, Pratt)."""
    while matched and stop[matched] != char:
        matched = borders[matched]
    return matched + 1 if stop[matched] == char else 0


@lru_cache(maxsize=1024)
def _borders(stop: str) -> tuple[int, ...]:
    """Return, for each length of a beginning of `stop`, its longest proper beginning that also is its end."""
    borders = [0, 0]
    for index in range(1, len(stop)):
        borders.append(_advance(stop, borders, borders[index], stop[index]))
    return tuple(borders)
