"""Log-probabilities in OpenAI's two shapes.

Knows chunks. Does not know a tokenizer: a token is named `token_id:N`, and has no bytes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.kserve_client import Chunk

LEAST = -9999.0  # OpenAI's word for hardly possible; JSON has no minus infinity
Place = tuple[str, float, list[tuple[str, float]]]  # token, log-probability, the likeliest ones


def chat_logprobs(chunks: Sequence[Chunk], num_top: int) -> dict[str, Any]:
    """Return the shape of chat completions."""
    content = [
        _entry(token, value) | {"top_logprobs": [_entry(*other) for other in likeliest]}
        for chunk in chunks
        for token, value, likeliest in _places(chunk, num_top)
    ]
    return {"content": content, "refusal": None}


def text_logprobs(chunks: Sequence[Chunk], num_top: int) -> dict[str, Any]:
    """Return the shape of completions; tokens of one chunk share the offset at which its text begins."""
    tokens: list[str] = []
    values: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    offset = 0
    for chunk in chunks:
        for token, value, likeliest in _places(chunk, num_top):
            tokens.append(token)
            values.append(value)
            tops.append(dict(likeliest))
            offsets.append(offset)
        offset += len(chunk.text)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops if num_top else None,
        "text_offset": offsets,
    }


def _places(chunk: Chunk, num_top: int) -> Iterator[Place]:
    for at, (token, value) in enumerate(zip(chunk.token_ids, chunk.log_probs, strict=False)):
        part = slice(at * num_top, (at + 1) * num_top)
        pairs = zip(chunk.top_token_ids[part], chunk.top_log_probs[part], strict=True)
        yield _name(token), max(value, LEAST), [(_name(other), max(prob, LEAST)) for other, prob in pairs]


def _entry(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logprob": value, "bytes": None}


def _name(token: int) -> str:
    return f"token_id:{token}"
