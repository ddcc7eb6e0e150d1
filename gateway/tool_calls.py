"""Calls of tools in what a model says, found while the text arrives.

Knows two ways of writing a call: Hermes' and Qwen's, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
anywhere, and Llama 3's, a text that is `{"name": ..., "parameters": {...}}` from its beginning, or several of these
with `;` between. Does not know streams or OpenAI's objects.

Invariants:
1. A call names one of the tools that were offered; what looks like a call and is none stays text, unchanged.
2. Text leaves as soon as it cannot become a part of a call any more; all of it has left when the answer is over.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

Form = Literal["auto", "hermes", "llama3_json", "text"]
BEGIN, END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"  # Llama 3's own mark, where decoding shows it
SEPARATORS = "; \n\t\r"
_decoder = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What is to be called; `arguments` is JSON."""

    name: str
    arguments: str


Part = str | ToolCall


class _Place(Enum):
    """Where in the answer the text at hand stands."""

    START = auto()  # nothing but space so far, or directly behind a call
    TEXT = auto()
    TAGGED = auto()  # behind <tool_call>
    OBJECT = auto()  # in a text that begins with {


class ToolCallFinder:
    """Finds the calls in one answer."""

    def __init__(self, names: frozenset[str], form: Form) -> None:
        """Look for calls of these tools, written in this form."""
        self._names = names
        self._is_tagged, self._is_bare = form in {"auto", "hermes"}, form in {"auto", "llama3_json"}
        self._held = ""
        self._place = _Place.START
        self.num_calls = 0

    def push(self, text: str, final: bool) -> list[Part]:
        """Take more of the answer; return what is certain by now, in order. After `final` nothing may come."""
        self._held += text
        return [part for part in self._parts(final) if part]

    def _parts(self, final: bool) -> Iterator[Part]:
        steps = {
            _Place.START: self._start,
            _Place.TEXT: self._text,
            _Place.TAGGED: self._tagged,
            _Place.OBJECT: self._object,
        }
        while True:
            place, held = self._place, self._held
            part = steps[place](final)
            if part is not None:
                yield part
            if (self._place, self._held) == (place, held):
                return

    def _start(self, final: bool) -> Part | None:
        if self.num_calls:
            self._held = self._held.lstrip(SEPARATORS)
        stripped = self._held.lstrip()
        if self._is_bare and stripped.startswith(PYTHON_TAG):
            self._held = stripped.removeprefix(PYTHON_TAG)
        elif self._is_bare and stripped.startswith("{"):
            self._place = _Place.OBJECT
        elif final or not (self._is_bare and PYTHON_TAG.startswith(stripped)):
            self._place = _Place.TEXT
        return None

    def _text(self, final: bool) -> Part | None:
        at = self._held.find(BEGIN) if self._is_tagged else -1
        if at >= 0:
            text, self._held = self._held[:at], self._held[at:]
            self._place = _Place.TAGGED
            return text.rstrip() or None
        size = len(self._held)
        if self._is_tagged and not final:  # space in front of a call goes with it
            size = len(self._held[: size - _overlap(self._held, BEGIN)].rstrip())
        text, self._held = self._held[:size], self._held[size:]
        return text

    def _tagged(self, final: bool) -> Part | None:
        at = self._held.find(END)
        if at < 0 and not final:
            return None
        body = self._held[len(BEGIN) : at if at >= 0 else None]
        size = at + len(END) if at >= 0 else len(self._held)
        whole, self._held = self._held[:size], self._held[size:]
        return self._take(_loads(body.strip()), whole)

    def _object(self, final: bool) -> Part | None:
        text = self._held.lstrip(SEPARATORS)
        try:
            value, size = _decoder.raw_decode(text) if final or text.endswith(("}", ";")) else (None, 0)
        except (ValueError, RecursionError):
            value, size = None, 0
        if size:
            whole, self._held = text[:size], text[size:]
            return self._take(value, whole)
        if final:
            self._place = _Place.TEXT
        return None

    def _take(self, value: Any, whole: str) -> Part:
        """Return the call that a piece of text is, or the text where it is none."""
        call = self._call_of(value)
        self._place = _Place.TEXT if call is None else _Place.START
        self.num_calls += call is not None
        return whole if call is None else call

    def _call_of(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            return ToolCall(value["name"], arguments)
        is_object = isinstance(arguments, dict)
        return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False)) if is_object else None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
