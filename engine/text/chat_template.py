"""A conversation as the model wants to read it: checks messages and renders the model's own template.

Knows the messages' JSON, the places a template may stand in a model folder, and what templates expect of Jinja.
Does not know tokens. The template runs in a sandbox that cannot change or reach anything but its arguments.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from engine.errors import InvalidRequest, ModelError

Message = dict[str, Any]
DEFAULT_NAME = "default"


@dataclass(slots=True)
class ChatTemplate:
    """One compiled template and the special tokens it may name."""

    template: jinja2.Template
    special_tokens: dict[str, str]

    @classmethod
    def compile(cls, source: str, special_tokens: dict[str, str]) -> "ChatTemplate":
        """Compile a template.

        Raises:
            ModelError: the source is no valid Jinja.
        """
        try:
            return cls(_environment().from_string(source), special_tokens)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template cannot be read: {error}") from error

    @classmethod
    def load(cls, folder: Path, configured: object, special_tokens: dict[str, str]) -> "ChatTemplate | None":
        """Find the template of a model folder: chat_template.jinja, else the entry of tokenizer_config.json.

        Args:
            folder: the model folder.
            configured: `chat_template` of tokenizer_config.json: a string, or a list of named templates.
            special_tokens: texts of bos_token, eos_token and the like, by name.

        Returns:
            None where the model has none.
        """
        path = folder / "chat_template.jinja"
        source = path.read_text(encoding="utf-8") if path.is_file() else _default_source(configured)
        return None if source is None else cls.compile(source, special_tokens)

    def render(self, messages: list[Message]) -> str:
        """Return the prompt text, up to where the assistant's answer begins.

        Raises:
            InvalidRequest: the template refuses the messages or fails on them.
        """
        try:
            return self.template.render(
                **self.special_tokens, messages=messages, add_generation_prompt=True, tools=None, documents=None
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error


def parse_messages(text: str) -> list[Message]:
    """Read and check the JSON of a conversation; text parts of a content list are joined.

    Raises:
        InvalidRequest: no JSON list of objects with a role and a text content.
    """
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"messages is not valid JSON: {error}") from error
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages must be a JSON list, got {_json_type(messages)}")
    if not messages:
        raise InvalidRequest("messages is empty; it needs at least one message")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(index: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"messages[{index}] must be an object with role and content, got {_json_type(message)}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"messages[{index}] needs a role that is a non-empty string")
    if "content" not in message:
        raise InvalidRequest(f"messages[{index}] has no content")
    return {**message, "content": _check_content(index, message["content"])}


def _check_content(index: int, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"messages[{index}].content must be a string, got {_json_type(content)}")
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(f"messages[{index}].content may only hold parts of type text, each with a text")
        texts.append(text)
    return "".join(texts)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _default_source(configured: object) -> str | None:
    if isinstance(configured, list):
        named = {e["name"]: e["template"] for e in configured if isinstance(e, dict) and {"name", "template"} <= set(e)}
        return named.get(DEFAULT_NAME)
    return configured if isinstance(configured, str) else None


class _Generation(jinja2.ext.Extension):
    """The `generation` tag marks the assistant's text for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it mutable

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Give back the body of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    helpers: dict[str, Callable[..., object]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(value: object, *, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
