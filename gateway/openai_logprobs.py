"""Log-probabilities in OpenAI's two shapes.

Knows chunks and the bytes of their tokens. Does not know a tokenizer.
"""

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.kserve_messages import Chunk

BROKEN = re.compile("\ufffd{0,256}")  # what a text shows of bytes that are no characters
DECODER = codecs.getincrementaldecoder("utf-8")
LEAST = -9999.0  # OpenAI's word for hardly possible; JSON has no minus infinity


@dataclass(frozen=True, slots=True)
class Logged:
    """One token: what it stands for, and how likely it was."""

    spelled: bytes
    value: float

    @property
    def name(self) -> str:
        """Its text; where its bytes are only a part of a character, `bytes:` and these, as OpenAI writes it."""
        try:
            return self.spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.spelled)

    @property
    def told(self) -> float | None:
        """Its log-probability; None of an echoed prompt's first token, which has none."""
        return None if math.isnan(self.value) else max(self.value, LEAST)

    def entry(self) -> dict[str, Any]:
        """Return it in the shape of chat completions."""
        return {"token": self.name, "logprob": self.told, "bytes": list(self.spelled)}


Place = tuple[Logged, list[Logged]]  # a token, and the likeliest ones in its place


def chat_logprobs(chunks: Sequence[Chunk], num_top: int) -> dict[str, Any]:
    """Return the shape of chat completions."""
    content = [
        token.entry() | {"top_logprobs": [other.entry() for other in likeliest]}
        for chunk in chunks
        for token, likeliest in _places(chunk, num_top)
    ]
    return {"content": content, "refusal": None}


def text_logprobs(chunks: Sequence[Chunk], num_top: int) -> dict[str, Any]:
    """Return the shape of completions; offsets are those of the text in the object."""
    places = [place for chunk in chunks for place in _places(chunk, num_top)]
    return {
        "tokens": [token.name for token, _ in places],
        "token_logprobs": [token.told for token, _ in places],
        "top_logprobs": [_tops(*place) for place in places] if num_top else None,
        "text_offset": [offset for offsets in _offsets(chunks) for offset in offsets],
    }


def _tops(token: Logged, likeliest: Sequence[Logged]) -> dict[str, float | None] | None:
    """Return what was likeliest in a token's place; nothing is known of that of an echoed prompt's first token."""
    return None if token.told is None else {each.name: each.told for each in likeliest}


def _offsets(chunks: Sequence[Chunk]) -> Iterator[list[int]]:
    """Yield for each chunk where in the text its logged tokens begin; a part of a character begins where that does."""
    start = 0
    for chunk in chunks:
        decoder, at, offsets = DECODER("ignore"), 0, list[int]()
        for spelled in chunk.token_bytes[: len(chunk.log_probs)]:
            offsets.append(start + at)
            at = _behind(chunk.text, at, decoder.decode(spelled))
        yield offsets
        start += len(chunk.text)


def _behind(text: str, at: int, piece: str) -> int:
    """Return where the text goes on behind a token's characters, which stand at `at` or behind bytes that are none.

    A text may begin without its first token's space, end within a token, and shows no special token's name.
    """
    if not piece:
        return at
    found = BROKEN.match(text, at)
    for place in (at, at if found is None else found.end()):
        for shown in (piece, piece[1:] if piece[0] == " " else ""):
            if shown and text.startswith(shown, place):
                return place + len(shown)
    return len(text) if len(text) - at < len(piece) and piece.startswith(text[at:]) else at


def _places(chunk: Chunk, num_top: int) -> Iterator[Place]:
    others = [Logged(*pair) for pair in zip(chunk.top_token_bytes, chunk.top_log_probs, strict=True)]
    for at, pair in enumerate(zip(chunk.token_bytes, chunk.log_probs, strict=True)):
        yield Logged(*pair), others[at * num_top : (at + 1) * num_top]
