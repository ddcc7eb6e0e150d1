"""The JSON objects of OpenAI's answers.

Knows names and nesting. Does not know HTTP.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.kserve_client import MODEL, Chunk
from gateway.openai_logprobs import chat_logprobs, text_logprobs
from gateway.tool_calls import Form, ToolCall, ToolCallFinder


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
    tools: frozenset[str] = frozenset()  # that the answer may call
    form: Form = "auto"  # of such a call
    _finders: dict[int, ToolCallFinder] = field(default_factory=dict)  # by choice

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return all of it in one object."""
        choices: list[dict[str, Any]] = []
        for index in sorted({chunk.index for chunk in chunks}):
            own = [chunk for chunk in chunks if chunk.index == index]
            text, deltas = self._spoken(index, "".join(chunk.text for chunk in own), final=True)
            calls = [{name: value for name, value in delta.items() if name != "index"} for delta in deltas]
            message = {"role": "assistant", "content": text or None, "tool_calls": calls} if calls else {}
            message = message or {"role": "assistant", "content": text}
            content = {"message": message} if self.shape.is_chat else {"text": text}
            choices.append(
                {"index": index, **content, "logprobs": self._logs(own), "finish_reason": self._end(own[-1])}
            )
        return self._object(self.shape.whole, choices) | {"usage": usage(chunks)}

    def piece(self, chunk: Chunk, is_first: bool, with_usage: bool) -> dict[str, Any]:
        """Return the object of one chunk; it has a null `usage` where a last object will have a real one."""
        if not self.shape.is_chat:
            content: dict[str, Any] = {"text": chunk.text}
        else:
            text, calls = self._spoken(chunk.index, chunk.text, final=bool(chunk.finish_reason))
            role = {"role": "assistant"} if is_first else {}
            said = {"content": text} if text or is_first else {}
            content = {"delta": role | said | ({"tool_calls": calls} if calls else {})}
        choice = {"index": chunk.index, **content, "logprobs": self._logs([chunk])}
        made = self._object(self.shape.piece, [choice | {"finish_reason": self._end(chunk) or None}])
        return made | ({"usage": None} if with_usage else {})

    def closing(self, extras: dict[str, Any]) -> dict[str, Any]:
        """Return the last object, without choices, which carries the usage and whatever else was asked for."""
        return self._object(self.shape.piece, []) | extras

    def _spoken(self, index: int, text: str, final: bool) -> tuple[str, list[dict[str, Any]]]:
        """Return what of an answer's next text is text, and the calls of tools that begin or go on in it."""
        if not self.tools:
            return text, []
        finder = self._finders.setdefault(index, ToolCallFinder(self.tools, self.form))
        number, said, calls = finder.num_calls - 1, "", list[dict[str, Any]]()
        for part in finder.push(text, final):
            if isinstance(part, str):
                said += part
            elif isinstance(part, ToolCall):
                number += 1
                calls.append(_call(number, part))
            elif calls:
                calls[-1]["function"]["arguments"] += part.text
            else:
                calls.append({"index": number, "function": {"arguments": part.text}})
        return said, calls

    def _end(self, chunk: Chunk) -> str:
        """Return why a choice has ended, empty where it has not."""
        finder = self._finders.get(chunk.index)
        has_called = finder is not None and finder.num_calls > 0
        return "tool_calls" if has_called and chunk.finish_reason == "stop" else chunk.finish_reason

    def _logs(self, chunks: Sequence[Chunk]) -> dict[str, Any] | None:
        if self.num_top is None:
            return None
        return (chat_logprobs if self.shape.is_chat else text_logprobs)(chunks, self.num_top)

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.reply_id, "object": name, "created": self.created, "model": MODEL, "choices": choices}


def _call(number: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": number, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def usage(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """Return the token counts of a finished request, where sequences of one prompt share its tokens."""
    last = {chunk.index: chunk for chunk in chunks}
    prompts: dict[int, list[Chunk]] = {}
    for chunk in last.values():
        prompts.setdefault(chunk.prompt, []).append(chunk)
    prompt = sum(max(chunk.prompt_tokens for chunk in own) for own in prompts.values())
    cached = sum(max(chunk.cached_tokens for chunk in own) for own in prompts.values())
    completion = sum(chunk.completion_tokens for chunk in last.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
