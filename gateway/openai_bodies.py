"""Bodies of OpenAI requests, and the tensors that they mean.

Knows names, types, neutral values and tensors. Does not know HTTP or streams.

Invariants:
1. Nothing is ignored: a field that would change the answer is obeyed or refused.
2. A field in `NEUTRAL` may be sent with the values named there, which ask for nothing.
"""

import json
import struct
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gateway.kserve_client import Tensor, int_tensor, text_tensor

MAX_INT32 = 2**31 - 1
FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
NEUTRAL: dict[str, list[Any]] = {
    "n": [1],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
    "logit_bias": [{}],
    "logprobs": [False],
    "top_logprobs": [0],
    "response_format": [{"type": "text"}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "modalities": [["text"]],
    "store": [False],
    "service_tier": ["auto", "default"],
}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate is not text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=1, le=MAX_INT32)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Unsupported(Exception):
    """A field that asks for something we do not do."""

    def __init__(self, name: str) -> None:
        """Name the field."""
        super().__init__(f"the field {name!r} with this value is not supported")
        self.name = name


class Strict(BaseModel):
    """Takes no unknown fields and converts nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False


class Body(Strict):
    """What both kinds of request share; null is the same as absent."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Text | list[Text] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: str | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_tokens

    def prompt_tensor(self) -> Tensor:
        """Return the tensor of the prompt."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Return the inputs of the model; what is absent here is absent there."""
        made = [self.prompt_tensor()]
        if self.limit is not None:
            made.append(int_tensor("max_tokens", [self.limit]))
        floats = {name: getattr(self, name) for name in FLOATS}
        made += [Tensor(n, "FP32", struct.pack("<f", value)) for n, value in floats.items() if value is not None]
        if self.seed is not None:
            made.append(Tensor("random_seed", "UINT64", struct.pack("<Q", self.seed)))
        if self.stop:
            made.append(text_tensor("stop_words", [self.stop] if isinstance(self.stop, str) else self.stop))
        return made


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: Text | Annotated[list[TokenId], Field(min_length=1)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: object) -> object:
        if not isinstance(value, list) or not any(isinstance(item, str | list) for item in value):
            return value
        if len(value) > 1:
            raise ValueError("several prompts in one request are not supported; send one request for each")
        return value[0]

    def prompt_tensor(self) -> Tensor:
        """Return text or token ids."""
        if isinstance(self.prompt, str):
            return text_tensor("text_input", [self.prompt])
        return int_tensor("input_ids", self.prompt)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation."""

    role: Text
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return the message with its text in one piece."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatBody":
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens are both given and differ")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    def prompt_tensor(self) -> Tensor:
        """Return the conversation."""
        return text_tensor("messages", [json.dumps([message.plain() for message in self.messages])])


def without_neutral(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields less those that ask for nothing.

    Raises:
        Unsupported: one of those asks for something.
    """
    for name, values in NEUTRAL.items():
        value = fields.get(name)
        if value is not None and not any(type(value) is type(item) and value == item for item in values):
            raise Unsupported(name)
    return {name: value for name, value in fields.items() if name not in NEUTRAL}
