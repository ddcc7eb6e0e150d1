"""Where a stream of tokens may be cut into chunks of text, and the text of one chunk.

Knows tokens, their kinds and U+FFFD. Does not know requests, stop strings or who sends the chunks.

Cutting rules, with *run* for the fragment tokens since the last whole one:
1. After a whole token the text may always be cut.
2. After a byte-level run it may be cut where the run's text does not end in U+FFFD.
3. A byte-fallback run decodes as one: a single wrong byte spoils all of it, so it may only be cut once it is over.
4. Whatever the rules say, no more than `MAX_HELD` tokens are held back: a longer run is cut at its longest readable
   beginning, else right away. Only there, on a run of more than `MAX_HELD` tokens holding bytes that are no text, may
   the chunks joined differ from the text decoded at once, and only in how the wrong bytes show.

Invariant: the texts of all chunks of a completion, joined, are `decode` of all its tokens (but for rule 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.text.tokenizer import REPLACEMENT, Tokenizer, TokenKind

MIN_CONTEXT = 4
MAX_HELD = 32


def chunk_text(
    tokenizer: Tokenizer, token_ids: Sequence[int], context_ids: Sequence[int] = (), trim_chars: int = 0
) -> str:
    """Return the characters that `token_ids` add to the text of `context_ids`, less `trim_chars` at their end."""
    before = len(tokenizer.decode(list(context_ids))) if context_ids else 0
    text = tokenizer.decode([*context_ids, *token_ids])[before:]
    return text[: max(len(text) - trim_chars, 0)] if trim_chars else text


def clean_length(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """Return how many of `token_ids`, which begin at a clean boundary, may be cut off as a chunk now.

    Costs a look at the last token, and a decode of at most the run at the end.
    """
    start = _run_start(tokenizer, token_ids)
    run = list(token_ids[start:])
    if not tokenizer.joins_runs:
        readable = next((n for n in range(len(run), 0, -1) if not tokenizer.decode(run[:n]).endswith(REPLACEMENT)), 0)
        return start + (readable or (len(run) if len(run) > MAX_HELD else 0))
    if len(run) <= MAX_HELD:
        return start
    return start + next((n for n in range(len(run), 0, -1) if REPLACEMENT not in tokenizer.decode(run[:n])), len(run))


def shorten_context(tokenizer: Tokenizer, visible_ids: list[int]) -> list[int]:
    """Return the shortest end of `visible_ids` that starts at a clean boundary and has `MIN_CONTEXT` tokens.

    Clean is a start after a whole token, or one from which everything is readable. Where the last `MAX_HELD` tokens
    have no such start, the last `MIN_CONTEXT` tokens have to do (rule 4).
    """
    latest = len(visible_ids) - MIN_CONTEXT
    for start in range(latest, max(latest - MAX_HELD, 0), -1):
        after_whole = tokenizer.kind(visible_ids[start - 1]) is TokenKind.WHOLE
        if after_whole or REPLACEMENT not in tokenizer.decode(visible_ids[start:]):
            return visible_ids[start:]
    return visible_ids[latest:] if latest > MAX_HELD else visible_ids


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens to send, and the tokens before them that their text depends on."""

    token_ids: list[int]
    context_ids: list[int]


@dataclass(slots=True)
class ChunkCutter:
    """Cuts one completion into chunks; tokens go in as they come and leave at clean boundaries."""

    tokenizer: Tokenizer
    _held: list[int] = field(default_factory=list)
    _context: list[int] = field(default_factory=list)

    def resume(self, token_ids: Sequence[int]) -> None:
        """Begin behind tokens that have been sent, by whomever."""
        self._context = shorten_context(self.tokenizer, visible(self.tokenizer, token_ids))

    def push(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the completion."""
        self._held.extend(token_ids)

    def cut(self, *, final: bool = False) -> Chunk:
        """Take out as many tokens as may go now, all of them where `final`; the chunk may be empty."""
        num_ready = len(self._held) if final else clean_length(self.tokenizer, self._held)
        ready, self._held = self._held[:num_ready], self._held[num_ready:]
        chunk = Chunk(token_ids=ready, context_ids=self._context)
        self._context = shorten_context(self.tokenizer, self._context + visible(self.tokenizer, ready))
        return chunk


def visible(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """Return the tokens that decoding does not leave out."""
    return [i for i in token_ids if tokenizer.kind(i) is not TokenKind.INVISIBLE]


def _run_start(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """Return where the fragments at the end begin; invisible tokens between them belong to the run."""
    start = len(token_ids)
    for index in range(len(token_ids) - 1, -1, -1):
        kind = tokenizer.kind(token_ids[index])
        if kind is TokenKind.WHOLE:
            break
        if kind is TokenKind.FRAGMENT:
            start = index
    return start
