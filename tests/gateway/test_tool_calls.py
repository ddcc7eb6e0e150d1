"""Calls of tools are found in the text however it is cut; everything else stays text."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tool_calls import Form, MoreArguments, Part, ToolCall, ToolCallFinder

NAMES = frozenset({"look", "add"})
LOOK, ADD = ToolCall("look", '{"at": "ä {}"}'), ToolCall("add", '{"a": 1, "b": [2]}')


def hermes(call: ToolCall, key: str = "arguments") -> str:
    body = {"name": call.name, key: json.loads(call.arguments)}
    return f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"


def bare(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "parameters": json.loads(call.arguments)}, ensure_ascii=False)


def joined(parts: list[Part]) -> list[Part]:
    made: list[Part] = []
    for part in parts:
        if isinstance(part, str) and made and isinstance(made[-1], str):
            made[-1] += part
        elif isinstance(part, MoreArguments):
            call = made.pop()
            assert isinstance(call, ToolCall)
            made.append(ToolCall(call.name, call.arguments + part.text))
        else:
            made.append(part)
    return made


def find(text: str, cuts: list[int], form: Form = "auto") -> list[Part]:
    finder, parts, places = (
        ToolCallFinder(NAMES, form),
        [],
        sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)}),
    )
    for begin, end in pairwise(places):
        parts += finder.push(text[begin:end], final=False)
    return joined(parts + finder.push("", final=True))


CASES: list[tuple[str, list[Part]]] = [
    (hermes(LOOK), [LOOK]),
    (f"I will look.\n{hermes(LOOK)}\n{hermes(ADD)}\n", ["I will look.", LOOK, ADD]),
    (hermes(ADD).removesuffix("</tool_call>"), [ADD]),  # the end tag may be a stop token
    (bare(LOOK), [LOOK]),
    (f"\n{bare(LOOK)}; {bare(ADD)}", [LOOK, ADD]),
    (f"<|python_tag|>{bare(ADD)}", [ADD]),
    ("just a text with < and <tool", ["just a text with < and <tool"]),
    ("", []),
    ('{"name": "other", "parameters": {}}', ['{"name": "other", "parameters": {}}']),
    ('{"answer": 1} and more', ['{"answer": 1} and more']),
    ('{"name": "look", "para', ['{"name": "look", "para']),
    ("<tool_call>no json</tool_call> then", ["<tool_call>no json</tool_call> then"]),
    ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>',) * 2,  # type: ignore[list-item]
    ("  a text", ["  a text"]),
    ('<tool_call>{"name": "add", "arguments": {"a": "}</tool_call> x', [ToolCall("add", '{"a": "}'), "x"]),
    ('{"name": "add", "parameters": {"a": [1, {"b', [ToolCall("add", '{"a": [1, {"b')]),
    ('{"name": "add", "parameters": {"a": "\\"{"}, "id": {}}; ' + bare(LOOK), [ToolCall("add", '{"a": "\\"{"}'), LOOK]),
    ('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', [ToolCall("add", '{"a": 1}')]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0][:30])
@given(cuts=st.lists(st.integers(0, 200), max_size=12))
def test_the_same_is_found_however_the_text_is_cut(case: tuple[str, Any], cuts: list[int]) -> None:
    text, expected = case
    assert find(text, cuts) == ([expected] if isinstance(expected, str) else expected)


@given(text=st.text(alphabet='<tool_ca>/{}"name:look, ;', max_size=60), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_text_without_a_call_comes_out_as_it_was(text: str, cuts: list[int]) -> None:
    parts = find(text, cuts)
    if not any(isinstance(part, ToolCall) for part in parts):
        assert "".join(map(str, parts)) == text


def test_a_form_that_was_not_chosen_is_text() -> None:
    assert find(bare(LOOK), [], "hermes") == [bare(LOOK)]
    assert find(hermes(LOOK), [], "llama3_json") == [hermes(LOOK)]
    assert find(hermes(LOOK), [], "text") == [hermes(LOOK)]


@pytest.mark.parametrize("write", [hermes, bare])
def test_arguments_leave_as_they_come(write: Callable[[ToolCall], str]) -> None:
    finder = ToolCallFinder(NAMES, "auto")
    whole = write(ADD)
    at = whole.index('"b"')
    assert finder.push(whole[:at], final=False) == [ToolCall("add", ""), MoreArguments('{"a": 1, ')]
    assert finder.push(whole[at:], final=True) == [MoreArguments('"b": [2]}')]


def test_text_before_a_call_does_not_wait_for_it() -> None:
    finder = ToolCallFinder(NAMES, "auto")
    assert finder.push("I look <to", final=False) == ["I look"]
    assert finder.push("morrow", final=False) == [" <tomorrow"]
