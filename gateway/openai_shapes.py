"""The JSON objects of OpenAI's answers.

Knows names and nesting. Does not know HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.kserve_client import MODEL, Chunk
from gateway.openai_logprobs import chat_logprobs, text_logprobs


@dataclass(frozen=True, slots=True)
class Shape:
    """How one kind of answer is called."""

    prefix: str
    whole: str
    piece: str
    is_chat: bool


TEXT = Shape("cmpl", "text_completion", "text_completion", is_chat=False)
CHAT = Shape("chatcmpl", "chat.completion", "chat.completion.chunk", is_chat=True)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole or in pieces."""

    shape: Shape
    reply_id: str
    created: int
    num_top: int | None = None  # likeliest tokens told in the place of each token; None: no log-probabilities

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return all of it in one object."""
        choices: list[dict[str, Any]] = []
        for index in sorted({chunk.index for chunk in chunks}):
            own = [chunk for chunk in chunks if chunk.index == index]
            text = "".join(chunk.text for chunk in own)
            content = {"message": {"role": "assistant", "content": text}} if self.shape.is_chat else {"text": text}
            logs = self._logs(own)
            choices.append({"index": index, **content, "logprobs": logs, "finish_reason": own[-1].finish_reason})
        return self._object(self.shape.whole, choices) | {"usage": usage(chunks)}

    def piece(self, chunk: Chunk, is_first: bool, with_usage: bool) -> dict[str, Any]:
        """Return the object of one chunk; it has a null `usage` where a last object will have a real one."""
        if not self.shape.is_chat:
            content: dict[str, Any] = {"text": chunk.text}
        else:
            role = {"role": "assistant"} if is_first else {}
            content = {"delta": role | ({"content": chunk.text} if chunk.text or is_first else {})}
        choice = {"index": chunk.index, **content, "logprobs": self._logs([chunk])}
        made = self._object(self.shape.piece, [choice | {"finish_reason": chunk.finish_reason or None}])
        return made | ({"usage": None} if with_usage else {})

    def closing(self, extras: dict[str, Any]) -> dict[str, Any]:
        """Return the last object, without choices, which carries the usage and whatever else was asked for."""
        return self._object(self.shape.piece, []) | extras

    def _logs(self, chunks: Sequence[Chunk]) -> dict[str, Any] | None:
        if self.num_top is None:
            return None
        return (chat_logprobs if self.shape.is_chat else text_logprobs)(chunks, self.num_top)

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.reply_id, "object": name, "created": self.created, "model": MODEL, "choices": choices}


def usage(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """Return the token counts of a finished request, whose sequences share one prompt."""
    last = {chunk.index: chunk for chunk in chunks}
    prompt = max(chunk.prompt_tokens for chunk in last.values())
    completion = sum(chunk.completion_tokens for chunk in last.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": max(chunk.cached_tokens for chunk in last.values())},
    }
