"""Parts of OpenAI's chat requests: messages, tools, and what the answer must look like.

Knows names and types. Does not know tensors or HTTP.

Invariants:
1. Of a list no more than the first wrong item is reported, and lists that take long to check are refused by their
   length before: every open stream waits while a body is checked.
2. An answer's message may be sent back as its client has it, with what the client or OpenAI adds to it.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

MAX_PROMPTS = 2048
MAX_ITEMS = 8192  # messages, parts of one, tools: 0.03 s
MAX_NOTES = 64


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate is not text") from error
    return text


def _not_too_many_prompts(value: Any) -> Any:
    if isinstance(value, list) and len(value) > MAX_PROMPTS and not isinstance(value[0], int):
        raise ValueError(f"at most {MAX_PROMPTS} in one request, got {len(value)}")
    return value


def _not_too_many_notes(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_NOTES:
        raise ValueError(f"at most {MAX_NOTES} entries, got {len(value)}")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
Some = Annotated[list[T], Field(fail_fast=True, min_length=1)]
Few = Annotated[list[T], Field(fail_fast=True, max_length=MAX_ITEMS)]
Prompts = BeforeValidator(_not_too_many_prompts)
TokenIds = Some[TokenId]
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Added = Annotated[Any, Field(exclude=True)]  # said of an answer, which a message says by itself


class Strict(BaseModel):
    """Takes no unknown fields and converts nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ForModel(Strict):
    """A body that names the model it is for."""

    model: str


class Named(ForModel):
    """For whom a request is and what its sender notes of it: nothing that an answer depends on."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_not_too_many_notes)] | None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class CalledFunction(Strict):
    """What the assistant has called."""

    name: Name
    arguments: Text
    parsed_arguments: Added = None


class ToolCall(Strict):
    """One call of the assistant's."""

    id: Text
    type: Literal["function"]
    function: CalledFunction
    index: Added = None


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Few[TextPart] | None = None
    name: Text | None = None
    tool_calls: Few[ToolCall] | None = None
    tool_call_id: Text | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Added = None
    parsed: Added = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has content or tool_calls")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the message with its text in one piece."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        others = self.model_dump(exclude={"role", "content"}, exclude_none=True)
        role = "system" if self.role == "developer" else self.role  # OpenAI's newer name, which most templates ignore
        return {"role": role, "content": content} | others


class Function(Strict):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """One tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """A function that is meant by its name."""

    name: Name


class NamedTool(Strict):
    """The one tool that an answer must call."""

    type: Literal["function"]
    function: NamedFunction

    @property
    def must_call(self) -> bool:
        """Whether an answer must be a call."""
        return True

    @property
    def names(self) -> set[str]:
        """The tools that may be called."""
        return {self.function.name}


class Allowed(Strict):
    """Those of the tools that an answer may call, and whether it must."""

    mode: Literal["auto", "required"]
    tools: Annotated[Some[NamedTool], Field(max_length=MAX_ITEMS)]


class AllowedTools(Strict):
    """The same as a choice."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed

    @property
    def must_call(self) -> bool:
        """Whether an answer must be a call."""
        return self.allowed_tools.mode == "required"

    @property
    def names(self) -> set[str]:
        """The tools that may be called."""
        return {tool.function.name for tool in self.allowed_tools.tools}


class Schema(Strict):
    """A JSON schema under a name; it is always followed, whatever `strict` says."""

    name: Name
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with the type json_schema and only then")
        return self

    def guided(self) -> dict[str, Any] | None:
        """Return the guide that makes it so, or None for free text."""
        if self.json_schema is not None:
            return {"json_schema": self.json_schema.schema_}
        return {"json_object": True} if self.type == "json_object" else None
