"""Bodies of OpenAI requests, and the tensors that they mean.

Knows names, types, neutral values and tensors. Does not know HTTP or streams.

Invariants:
1. Nothing is ignored: a field that would change the answer is obeyed or refused.
2. A field in `NEUTRAL` may be null or have a value named there, which ask for nothing; so do all values of `Named`.
"""

import json
import struct
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from gateway.demanded_calls import call_grammar
from gateway.kserve_messages import Tensor, int_tensor, prompt_tensors, text_tensor
from gateway.openai_parts import (
    MAX_ITEMS,
    AllowedTools,
    Few,
    Many,
    Message,
    Named,
    NamedTool,
    Prompts,
    ResponseFormat,
    Some,
    Strict,
    Text,
    TokenId,
    TokenIds,
    Tool,
)

MAX_INT32 = 2**31 - 1
MAX_TOP = 20
MAX_BIASES = 65536
FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
EXTRAS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")  # vLLM's, not OpenAI's
NEUTRAL: dict[str, list[Any]] = {
    "best_of": [1],
    "suffix": [""],
    "parallel_tool_calls": [True, False],
    "modalities": [["text"]],
    "store": [False],
    "service_tier": ["auto", "default"],
    "reasoning_effort": ["none"],
    "verbosity": ["medium"],
    "audio": [],
    "function_call": [],
    "functions": [],
    "prediction": [],
    "web_search_options": [],
}


Count = Annotated[int, Field(ge=1, le=MAX_INT32)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _not_too_many_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens, got {len(value)}")
    return value


class Unsupported(Exception):
    """A field that asks for something we do not do."""

    def __init__(self, name: str) -> None:
        """Name the field."""
        super().__init__(f"the field {name!r} with this value is not supported")
        self.name = name


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Body(Named):
    """What both kinds of request share; null is the same as absent."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Text | Many[Text] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], BeforeValidator(_not_too_many_biases)] | None = None
    adapter: Text | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Many[TokenId] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_tokens

    @property
    def num_top(self) -> int | None:
        """How many likeliest tokens to tell in the place of each token; None where no log-probabilities are wanted."""
        raise NotImplementedError

    @property
    def offered(self) -> frozenset[str]:
        """Names of the tools that the answer may call."""
        return frozenset()

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call of an offered tool and nothing else."""
        return False

    def prompts(self) -> list[list[Tensor]]:
        """Return the tensors of each prompt."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return what goes into `sampling_parameters`."""
        extras = {name: getattr(self, name) for name in EXTRAS}
        made: dict[str, Any] = {name: value for name, value in extras.items() if value is not None}
        if self.n not in {None, 1}:
            made["n"] = self.n
        if self.logit_bias:
            made["logit_bias"] = self.logit_bias
        if self.num_top is not None:
            made |= {"logprobs": True} | ({"top_logprobs": self.num_top} if self.num_top else {})
        return made

    def requests(self) -> list[list[Tensor]]:
        """Return the inputs of the model for each prompt; what is absent here is absent there."""
        shared = self._shared_tensors()
        return [[*prompt, *shared] for prompt in self.prompts()]

    def _shared_tensors(self) -> list[Tensor]:
        made: list[Tensor] = []
        if self.limit is not None:
            made.append(int_tensor("max_tokens", [self.limit]))
        floats = {name: getattr(self, name) for name in FLOATS}
        made += [Tensor(n, "FP32", struct.pack("<f", value)) for n, value in floats.items() if value is not None]
        if self.seed is not None:
            made.append(Tensor("random_seed", "UINT64", struct.pack("<Q", self.seed % 2**64)))
        if self.stop:
            made.append(text_tensor("stop_words", [self.stop] if isinstance(self.stop, str) else self.stop))
        if self.adapter is not None:
            made.append(text_tensor("adapter", [self.adapter]))
        if options := self.options():
            made.append(text_tensor("sampling_parameters", [json.dumps(options)]))
        return made


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: Annotated[Text | TokenIds | Some[Text] | Some[TokenIds], Prompts]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None

    @property
    def num_top(self) -> int | None:
        """How many likeliest tokens to tell."""
        return self.logprobs

    def options(self) -> dict[str, Any]:
        """Return what goes into `sampling_parameters`."""
        return super().options() | ({"echo": True} if self.echo else {})

    def prompts(self) -> list[list[Tensor]]:
        """Return text or token ids of each."""
        return [[tensor] for tensor in prompt_tensors(self.prompt)]


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Some[Message], Field(max_length=MAX_ITEMS)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: ResponseFormat | None = None
    tools: Few[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatBody":
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens are both given and differ")
        return self

    @field_validator("tool_choice")
    @classmethod
    def _among_tools(cls, value: Any, info: ValidationInfo) -> Any:
        names = {tool.function.name for tool in info.data.get("tools") or ()}
        if value == "required" and not names:
            raise ValueError("a call is required, but there are no tools")
        if isinstance(value, NamedTool | AllowedTools) and (unknown := value.names - names):
            raise ValueError(f"there is no tool {min(unknown)!r}")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("top_logprobs needs logprobs")
        return value

    @property
    def limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_top(self) -> int | None:
        """How many likeliest tokens to tell."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> frozenset[str]:
        """Names of the tools that the answer may call; none where its form is prescribed."""
        is_free = self.response_format is None or self.response_format.guided() is None
        tools = self._choosable() if is_free or self.must_call else []
        return frozenset(tool.function.name for tool in tools)

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call of an offered tool and nothing else."""
        choice = self.tool_choice
        return choice.must_call if isinstance(choice, NamedTool | AllowedTools) else choice == "required"

    def _choosable(self) -> list[Tool]:
        """Return the tools that `tool_choice` leaves."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool | AllowedTools):
            return [tool for tool in self.tools or () if tool.function.name in choice.names]
        return [] if choice == "none" else self.tools or []

    def options(self) -> dict[str, Any]:
        """Return what goes into `sampling_parameters`."""
        guided = self.response_format.guided() if self.response_format is not None else None
        if self.must_call:
            guided = {"ebnf": call_grammar(self._choosable())}
        return super().options() | ({} if guided is None else {"guided": guided})

    def prompts(self) -> list[list[Tensor]]:
        """Return the conversation, and the tools that its template is to show."""
        made = [text_tensor("messages", [json.dumps([message.plain() for message in self.messages])])]
        if self.tools and self.tool_choice != "none":
            made.append(text_tensor("tools", [json.dumps([tool.model_dump(exclude_none=True) for tool in self.tools])]))
        return [made]


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
