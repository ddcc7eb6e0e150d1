"""Encoding equals transformers'; what cannot be encoded is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest, ModelError
from engine.text.chat_template import parse_messages
from engine.text.tokenizer import Tokenizer, TokenKind
from tests.tokenizer_folders import make_byte_fallback, make_byte_level, make_llama3, write_json

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces ",
    "naïve 😀 世界\n\n",
    "12345 <|im_end|> x",
    "a</s>b",
    "é" * 9,
    "\x00\x7f",
]
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "qwen": make_byte_level,
    "llama3": make_llama3,
    "llama2": lambda p: make_byte_fallback(p, config={"tokenizer_class": "PreTrainedTokenizerFast"}),
    "llama2 by its own class": make_byte_fallback,
    "llama2 whose config says no bos": lambda p: make_byte_fallback(p, config={"add_bos_token": False}),
}
OWN_CLASS = (
    "llama2 by its own class",
    "llama2 whose config says no bos",
)  # transformers 5 normalizes these its own way


@pytest.mark.parametrize("style", FOLDERS)
@pytest.mark.filterwarnings("ignore")
def test_encoding_equals_transformers(tmp_path: Path, style: str):
    transformers = pytest.importorskip("transformers")
    folder = FOLDERS[style](tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer = Tokenizer.from_dir(folder)
    for text in TEXTS:
        if style in OWN_CLASS and (text.startswith(" ") or "</s>" in text):
            continue
        for special in (True, False):
            ids = reference.encode(text, add_special_tokens=special)
            assert tokenizer.encode(text, add_special_tokens=special) == ids, text
            assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore")
def test_chat_encoding_equals_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = make_byte_level(tmp_path)
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi 😀"}]
    reference = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert Tokenizer.from_dir(folder).encode_chat(messages) == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=50))
def test_byte_level_text_survives_the_round_trip(byte_level: Tokenizer, text: str):
    specials = [t.content for t in byte_level.backend.get_added_tokens_decoder().values()]
    if not any(s in text for s in specials):
        assert byte_level.decode(byte_level.encode(text)) == text


def test_kinds_tell_whole_tokens_from_byte_pieces_and_special_ones(byte_fallback: Tokenizer):
    ids = byte_fallback.backend.get_vocab(with_added_tokens=True)
    assert byte_fallback.kind(ids["<0xE2>"]) is TokenKind.FRAGMENT
    assert byte_fallback.kind(ids["<0x0A>"]) is TokenKind.FRAGMENT
    assert byte_fallback.kind(ids["</s>"]) is TokenKind.INVISIBLE
    assert byte_fallback.kind(byte_fallback.vocab_size + 5) is TokenKind.INVISIBLE
    assert byte_fallback.kind(ids["a"]) is TokenKind.WHOLE


def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer):
    with pytest.raises(InvalidRequest, match="not valid Unicode at character 1"):
        byte_level.encode("a\ud800")


@pytest.mark.parametrize(("value", "expected"), [(7, {7}), ([7, 9], {7, 9})])
def test_end_ids_come_from_the_generation_config_and_the_tokenizer(
    tmp_path: Path, value: int | list[int], expected: set[int]
):
    make_byte_level(tmp_path)
    assert Tokenizer.from_dir(tmp_path).eos_ids == {2}
    write_json(tmp_path / "generation_config.json", {"eos_token_id": value})
    assert Tokenizer.from_dir(tmp_path).eos_ids == expected | {2}


def test_a_folder_without_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str):
    make_byte_level(tmp_path)
    (tmp_path / name).write_text("{oops", encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        Tokenizer.from_dir(tmp_path)


def test_a_model_without_chat_template_says_so(tmp_path: Path):
    make_byte_level(tmp_path, config={"chat_template": None})
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer.from_dir(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def test_the_default_one_of_several_named_templates_is_used(tmp_path: Path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "{{ messages[0]['content'] }}"}]
    make_byte_level(tmp_path, config={"chat_template": named})
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "xyz"}])) == "xyz"


def test_a_template_file_wins_over_the_configured_template(tmp_path: Path):
    make_byte_level(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% generation %}F{% endgeneration %}", encoding="utf-8")
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "x"}])) == "F"


TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now", "arguments": '{"a": "é"}'}}]}
TOOL_TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson(indent=1) }}{% endfor %}{% for m in messages %}"
    "{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ loop.index | tojson(separators=(',', ':')) }}{% endfor %}"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tools", [None, [], TOOLS])
def test_tools_reach_the_template_as_in_transformers(tmp_path: Path, tools: list[dict[str, Any]] | None):
    transformers = pytest.importorskip("transformers")
    folder = make_byte_level(tmp_path, config={"chat_template": TOOL_TEMPLATE})
    messages = parse_messages(json.dumps([{"role": "user", "content": "x"}, CALL, {"role": "tool", "content": "12"}]))
    reference = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = reference.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert Tokenizer.from_dir(folder).encode_chat(messages, tools) == expected


def test_a_template_of_its_own_serves_conversations_with_tools(tmp_path: Path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    make_byte_level(tmp_path, config={"chat_template": named})
    tokenizer, messages = Tokenizer.from_dir(tmp_path), [{"role": "user", "content": "x"}]
    assert tokenizer.decode(tokenizer.encode_chat(messages, TOOLS)) == "T"
    assert tokenizer.decode(tokenizer.encode_chat(messages)) == "D"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("F", encoding="utf-8")
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat(messages, TOOLS)) == "F"


@pytest.mark.parametrize("calls", [{}, "x", [1], [{"function": {}}], [{"function": {"name": "f", "arguments": "{"}}]])
def test_tool_calls_that_are_none_are_refused(calls: object):
    with pytest.raises(InvalidRequest, match=r"messages\[0\]"):
        parse_messages(json.dumps([{"role": "assistant", "tool_calls": calls}]))


def test_a_template_may_refuse_messages(byte_level: Tokenizer):
    with pytest.raises(InvalidRequest, match="unknown role robot"):
        byte_level.encode_chat([{"role": "robot", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ undefined.x }}",
        "{{ range(9**9) }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, source: str):
    make_byte_level(tmp_path, config={"chat_template": source})
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        Tokenizer.from_dir(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def test_a_template_that_is_no_jinja_fails_at_load(tmp_path: Path):
    make_byte_level(tmp_path, config={"chat_template": "{% if %}"})
    with pytest.raises(ModelError, match="chat template cannot be read"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "must be a JSON list, got an object"),
        ("null", "must be a JSON list, got null"),
        ("[]", "at least one message"),
        ("[1]", r"messages\[0\] must be an object"),
        ('[{"content": "x"}]', r"messages\[0\] needs a role"),
        ('[{"role": 3, "content": "x"}]', r"messages\[0\] needs a role"),
        ('[{"role": "user", "content": "x"}, {"role": "user"}]', r"messages\[1\] has no content"),
        ('[{"role": "user", "content": null}]', "content must be a string, got null"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "parts of type text"),
    ],
)
def test_bad_messages_are_refused_by_name(text: str, complaint: str):
    with pytest.raises(InvalidRequest, match=complaint):
        parse_messages(text)


def test_text_parts_of_a_content_list_are_joined():
    parts = '[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]'
    assert parse_messages(parts) == [{"role": "user", "content": "ab"}]
