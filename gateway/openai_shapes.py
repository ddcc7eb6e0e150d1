"""The JSON objects of OpenAI's answers.

Knows names and nesting. Does not know HTTP.
"""

from dataclasses import dataclass
from typing import Any

from gateway.kserve_client import MODEL, Chunk


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

    def whole(self, text: str, last: Chunk) -> dict[str, Any]:
        """Return all of it in one object."""
        content = {"message": {"role": "assistant", "content": text}} if self.shape.is_chat else {"text": text}
        return self._object(self.shape.whole, [_choice(content, last.finish_reason)]) | {"usage": usage(last)}

    def piece(self, chunk: Chunk, is_first: bool, with_usage: bool) -> dict[str, Any]:
        """Return the object of one chunk; it has a null `usage` where a last object will have a real one."""
        if not self.shape.is_chat:
            choices = [_choice({"text": chunk.text}, chunk.finish_reason)]
        else:
            role = {"role": "assistant"} if is_first else {}
            content = {"content": chunk.text} if chunk.text or is_first else {}
            choices = [_choice({"delta": role | content}, chunk.finish_reason)]
        return self._object(self.shape.piece, choices) | ({"usage": None} if with_usage else {})

    def closing(self, extras: dict[str, Any]) -> dict[str, Any]:
        """Return the last object, without choices, which carries the usage and whatever else was asked for."""
        return self._object(self.shape.piece, []) | extras

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.reply_id, "object": name, "created": self.created, "model": MODEL, "choices": choices}


def usage(last: Chunk) -> dict[str, Any]:
    """Return the token counts of a finished request."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": last.cached_tokens},
    }


def _choice(content: dict[str, Any], finish_reason: str) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason or None}
