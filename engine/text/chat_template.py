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
DEFAULT_NAME, TOOLS_NAME = "default", "tool_use"
TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
RENDER_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),  # the sandbox's bound on ranges is an OverflowError
)


@dataclass(slots=True)
class ChatTemplate:
    """The compiled templates of a model and the special tokens they may name.

    Attributes:
        template: for conversations, with tools too unless there is `tools_template`.
        special_tokens: texts of bos_token, eos_token and the like, by name.
        tools_template: for conversations with tools, None where the model has no template of its own for them.
    """

    template: jinja2.Template
    special_tokens: dict[str, str]
    tools_template: jinja2.Template | None = None

    @classmethod
    def compile(cls, source: str, special_tokens: dict[str, str], tools_source: str | None = None) -> "ChatTemplate":
        """Compile the templates.

        Raises:
            ModelError: a source is no valid Jinja.
        """
        environment = _environment()
        try:
            tools_template = None if tools_source is None else environment.from_string(tools_source)
            return cls(environment.from_string(source), special_tokens, tools_template)
        except RENDER_ERRORS as error:  # constant expressions are computed while it is compiled
            raise ModelError(f"the model's chat template cannot be read: {error}") from error

    @classmethod
    def load(cls, folder: Path, configured: object, special_tokens: dict[str, str]) -> "ChatTemplate | None":
        """Find the templates of a model folder: its .jinja files, else the entry of tokenizer_config.json.

        Args:
            folder: the model folder.
            configured: `chat_template` of tokenizer_config.json: a string, or a list of named templates.
            special_tokens: texts of bos_token, eos_token and the like, by name.

        Returns:
            None where the model has none.
        """
        sources = _configured_sources(configured) | _file_sources(folder)
        source = sources.get(DEFAULT_NAME)
        return None if source is None else cls.compile(source, special_tokens, sources.get(TOOLS_NAME))

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """Return the prompt text, up to where the assistant's answer begins.

        Args:
            messages: the conversation.
            tools: JSON schemas of functions the assistant may call, handed to the template as they are.

        Raises:
            InvalidRequest: the template refuses the messages or fails on them.
        """
        template = self.template if not tools or self.tools_template is None else self.tools_template
        try:
            return template.render(
                **self.special_tokens,
                messages=messages,
                add_generation_prompt=True,
                tools=tools or None,
                documents=None,
            )
        except RENDER_ERRORS as error:
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


def parse_tools(text: str) -> list[dict[str, Any]]:
    """Read the JSON of the tools that a template is to show; what is in each is the template's business.

    Raises:
        InvalidRequest: no JSON list of objects.
    """
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"tools is not valid JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest("tools must be a JSON list of objects")
    return tools


def _check_message(index: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"messages[{index}] must be an object with role and content, got {_json_type(message)}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"messages[{index}] needs a role that is a non-empty string")
    if message.get("tool_calls"):
        calls = _check_tool_calls(index, message["tool_calls"])
        content = message.get("content")
        return {**message, "content": "" if content is None else _check_content(index, content), "tool_calls": calls}
    if "content" not in message:
        raise InvalidRequest(f"messages[{index}] has no content")
    return {**message, "content": _check_content(index, message["content"])}


def _check_tool_calls(index: int, calls: object) -> list[dict[str, Any]]:
    """Return the calls with their arguments as objects, as templates expect them; clients send them as JSON text."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"messages[{index}].tool_calls must be a list, got {_json_type(calls)}")
    checked: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"messages[{index}].tool_calls may only hold objects with a function and its name")
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"messages[{index}].tool_calls has arguments that are no JSON: {error}") from error
        checked.append({**call, "function": {**function, "arguments": arguments}})
    return checked


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


def _configured_sources(configured: object) -> dict[str, str]:
    if isinstance(configured, list):
        return {e["name"]: e["template"] for e in configured if isinstance(e, dict) and {"name", "template"} <= set(e)}
    return {DEFAULT_NAME: configured} if isinstance(configured, str) else {}


def _file_sources(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in (folder / MORE_TEMPLATES).glob("*.jinja")}
    if (folder / TEMPLATE_FILE).is_file():
        files[DEFAULT_NAME] = folder / TEMPLATE_FILE
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


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


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # templates may give them by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
