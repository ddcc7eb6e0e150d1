"""The JSON objects of OpenAI's answers.

Knows names and nesting. Does not know HTTP.

What is streamed is put together as text, since a chunk's object differs from the one before in a few characters:
`json.dumps` of all of it took 5.7 us a token.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from gateway.kserve_messages import MODEL, Chunk
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


@dataclass(slots=True)
class Reply:
    """One answer, whole or in events."""

    shape: Shape
    reply_id: str
    created: int
    num_top: int | None = None  # likeliest tokens told in the place of each token; None: no log-probabilities
    tools: frozenset[str] = frozenset()  # that the answer may call
    form: Form = "auto"  # of such a call
    with_usage: bool = False  # whether a last event tells the usage; all others say null then
    _finders: dict[int, ToolCallFinder] = field(default_factory=dict)  # by choice
    _last: dict[int, Chunk] = field(default_factory=dict)  # of each choice that has begun
    _frame: tuple[str, str] = field(init=False)  # what stands before and behind the choice of an event

    def __post_init__(self) -> None:
        """Write down what all events share."""
        empty = self._object(self.shape.piece, []) | ({"usage": None} if self.with_usage else {})
        before, _, behind = event(empty).rpartition("[]")
        self._frame = f"{before}[", f"]{behind}"

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return all of it in one object."""
        by_choice: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            by_choice.setdefault(chunk.index, []).append(chunk)
        choices: list[dict[str, Any]] = []
        for index, own in sorted(by_choice.items()):
            text, deltas = self._spoken(index, "".join(chunk.text for chunk in own), final=True)
            calls = [{name: value for name, value in delta.items() if name != "index"} for delta in deltas]
            message = {"role": "assistant", "content": text or None, "tool_calls": calls} if calls else {}
            message = message or {"role": "assistant", "content": text}
            content = {"message": message} if self.shape.is_chat else {"text": text}
            choices.append(
                {"index": index, **content, "logprobs": self._logs(own), "finish_reason": self._end(own[-1])}
            )
        return self._object(self.shape.whole, choices) | {"usage": usage(chunks)}

    def events(self, chunks: Iterable[Chunk]) -> str:
        """Return the server-sent events of chunks that come next, one behind the other."""
        before, behind = self._frame
        return "".join([f"{before}{self._choice(chunk)}{behind}" for chunk in chunks])

    def closing(self, ledger: dict[str, Any]) -> str:
        """Return what follows the last chunk: one more event where usage or ledger are told, and the end."""
        told = ({"usage": usage(self._last.values())} if self.with_usage else {}) | ledger
        return (event(self._object(self.shape.piece, []) | told) if told else "") + "data: [DONE]\n\n"

    def _choice(self, chunk: Chunk) -> str:
        """Return the choice of an event as JSON."""
        content = self._delta(chunk) if self.shape.is_chat else f'"text": {quote(chunk.text)}'
        self._last[chunk.index] = chunk
        logs = "null" if self.num_top is None else json.dumps(self._logs([chunk]))
        end = quote(self._end(chunk)) if chunk.finish_reason else "null"
        return f'{{"index": {chunk.index}, {content}, "logprobs": {logs}, "finish_reason": {end}}}'

    def _delta(self, chunk: Chunk) -> str:
        text, calls = self._spoken(chunk.index, chunk.text, final=bool(chunk.finish_reason))
        is_first = chunk.index not in self._last
        parts = ['"role": "assistant"'] if is_first else []
        if text or is_first:
            parts.append(f'"content": {quote(text)}')
        if calls:
            parts.append(f'"tool_calls": {json.dumps(calls)}')
        return f'"delta": {{{", ".join(parts)}}}'

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


def event(item: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(item)}\n\n"


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
