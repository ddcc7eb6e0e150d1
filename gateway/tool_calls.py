"""Calls of tools in what a model says, found while the text arrives.

Knows two ways of writing a call: Hermes' and Qwen's, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
anywhere, and Llama 3's, a text that is `{"name": ..., "parameters": {...}}` from its beginning, or several of these
with `;` between. Does not know streams or OpenAI's objects.

Invariants:
1. A call names one of the tools that were offered; what looks like a call and is none stays text, unchanged.
2. Text leaves as soon as it cannot become a part of a call any more; all of it has left when the answer is over.
3. Where the name comes first and the arguments are an object, as in both forms, a call has begun with its arguments,
   and these leave as they come: an answer that breaks off within them ends with a part of them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

Form = Literal["auto", "hermes", "llama3_json", "text"]
BEGIN, END = "<tool_call>", "</tool_call>"
OPENING = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
PYTHON_TAG = "<|python_tag|>"  # Llama 3's own mark, where decoding shows it
SEPARATORS = "; \n\t\r"
_decoder = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What is to be called; `arguments` is JSON, or its beginning."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class MoreArguments:
    """How the arguments of the latest call go on."""

    text: str


Part = str | ToolCall | MoreArguments


class _Place(Enum):
    """Where in the answer the text at hand stands."""

    START = auto()  # nothing but space so far, or directly behind a call
    TEXT = auto()
    TAGGED = auto()  # behind <tool_call>
    OBJECT = auto()  # in a text that begins with {
    ARGUMENTS = auto()  # of a call that has begun
    CLOSING = auto()  # behind these, up to the call's own end


class _Braces:
    """Finds where a JSON object ends."""

    def __init__(self, depth: int) -> None:
        """Begin with so many objects open."""
        self._depth = depth
        self._in_string = self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """Take more of it; return how many characters belong to it where it ends here, None where it goes on."""
        for at, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped, self._in_string = char == "\\", char != '"'
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if not self._depth:
                    return at + 1
            else:
                self._in_string = char == '"'
        return None


class ToolCallFinder:
    """Finds the calls in one answer."""

    def __init__(self, names: frozenset[str], form: Form) -> None:
        """Look for calls of these tools, written in this form."""
        self._names = names
        self._is_tagged, self._is_bare = form in {"auto", "hermes"}, form in {"auto", "llama3_json"}
        self._held = ""
        self._place = _Place.START
        self._has_tag = False  # whether the call that has begun ends with one
        self._braces = _Braces(0)
        self.num_calls = 0

    def push(self, text: str, final: bool) -> list[Part]:
        """Take more of the answer; return what is certain by now, in order. After `final` nothing may come."""
        self._held += text
        return [part for part in self._parts(final) if part not in {"", MoreArguments("")}]

    def _parts(self, final: bool) -> Iterator[Part]:
        steps = {
            _Place.START: self._start,
            _Place.TEXT: self._text,
            _Place.TAGGED: self._tagged,
            _Place.OBJECT: self._object,
            _Place.ARGUMENTS: self._arguments,
            _Place.CLOSING: self._closing,
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
        if call := self._begin(len(BEGIN), has_tag=True):
            return call
        at = self._held.find(END)
        if at < 0 and not final:
            return None
        body = self._held[len(BEGIN) : at if at >= 0 else None]
        size = at + len(END) if at >= 0 else len(self._held)
        whole, self._held = self._held[:size], self._held[size:]
        return self._take(_loads(body.strip()), whole)

    def _object(self, final: bool) -> Part | None:
        if call := self._begin(len(self._held) - len(self._held.lstrip(SEPARATORS)), has_tag=False):
            return call
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

    def _begin(self, at: int, *, has_tag: bool) -> ToolCall | None:
        """Return a call whose arguments begin in the text at hand, which stands behind `at`."""
        opening = OPENING.match(self._held, at)
        if opening is None or opening[1] not in self._names:
            return None
        self._held = self._held[opening.end() :]
        self._place, self._has_tag, self._braces = _Place.ARGUMENTS, has_tag, _Braces(0)
        self.num_calls += 1
        return ToolCall(opening[1], "")

    def _arguments(self, final: bool) -> Part | None:
        text, is_over = self._before_tag(final)
        size = self._braces.feed(text)
        if size is not None or is_over:
            self._place, self._braces = _Place.CLOSING, _Braces(1)
        piece, self._held = text[:size], self._held[len(text[:size]) :]
        return MoreArguments(piece)

    def _closing(self, final: bool) -> None:
        if self._has_tag:
            text, is_over = self._before_tag(final)
            self._held = self._held[len(text) :].removeprefix(END)
        else:
            size = self._braces.feed(self._held)
            self._held, is_over = "" if size is None else self._held[size:], size is not None
        if is_over:
            self._place = _Place.START

    def _before_tag(self, final: bool) -> tuple[str, bool]:
        """Return what surely belongs to the call that has begun, and whether that is all."""
        at = self._held.find(END) if self._has_tag else -1
        if at >= 0 or final or not self._has_tag:
            return (self._held[:at], True) if at >= 0 else (self._held, final)
        return self._held[: len(self._held) - _overlap(self._held, END)], False

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
