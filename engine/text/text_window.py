"""One chunk as the engine model hands it to post-processing: a single row of numbers.

Knows the layout: [trim_chars, number of context tokens, context tokens..., new tokens...]. Does not know text.

One tensor instead of three, since each tensor of each response costs its share of Triton's time; and a tensor that is
no output of the ensemble, since Triton 2.51 never answers a request for some outputs where a step reads another one.
"""

from collections.abc import Sequence

from engine.errors import RequestFailed
from engine.text.detokenizer import Chunk, chunk_text
from engine.text.tokenizer import Tokenizer

HEADER = 2


def pack_window(chunk: Chunk, trim_chars: int) -> list[int]:
    """Return the row for a chunk."""
    return [trim_chars, len(chunk.context_ids), *chunk.context_ids, *chunk.token_ids]


def window_text(tokenizer: Tokenizer, window: Sequence[int]) -> str:
    """Return the text that a row stands for.

    Raises:
        RequestFailed: the row does not follow the layout.
    """
    if len(window) < HEADER or not 0 <= window[1] <= len(window) - HEADER or window[0] < 0:
        raise RequestFailed(f"text_window is malformed: {len(window)} numbers, beginning {list(window[:HEADER])}")
    trim_chars, start = window[0], HEADER + window[1]
    return chunk_text(tokenizer, window[start:], window[HEADER:start], trim_chars)
