"""One request's named arrays and parameters, read into prompt ids and options.

Knows the tensor names users send, their types, and which request parameters exist. Does not know Triton's objects,
the engine core or tensors of any model.

Invariants:
1. What `read` returns can be served; everything else is refused here, by name, with the limit and the value.
2. Nothing is ignored: a name this module does not know is refused, and so is a value given twice and differently.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InvalidRequest
from engine.guided_options import KINDS
from engine.input_arrays import (
    MAX_OPTION_BYTES,
    check_size,
    read_bool,
    read_float,
    read_ids,
    read_int,
    read_object,
    read_string,
    read_texts,
)
from engine.messages import ModelInfo
from engine.request_check import check_request, resumed_output
from engine.request_options import RequestOptions, json_object
from engine.sampling_params import SamplingParams
from engine.scheduling_inputs import SCHEDULING_OPTIONS, SCHEDULING_PARAMETERS, read_scheduling
from engine.task_params import TASK_OPTIONS, TaskParams
from engine.text.chat_template import parse_messages, parse_tools
from engine.text.tokenizer import Tokenizer

PROMPTS = ("text_input", "messages", "input_ids")
TOOLS = "tools"
RESUME = "resume_token_ids"
GUIDE_TYPE, GUIDE = "guided_decoding_guide_type", "guided_decoding_guide"
GUIDE_TYPES = {kind: kind for kind in KINDS} | {"json": "json_object", "ebnf_grammar": "ebnf"}
KEY_PARAMETER = "request_key"
SEED_KEY_PARAMETER = "seed_key"
KNOWN_PARAMETERS = frozenset(
    {KEY_PARAMETER, SEED_KEY_PARAMETER, "id", "priority", "timeout", "headers", *SCHEDULING_PARAMETERS}
)
FORWARDED_HEADERS = frozenset({"user-agent", "accept", "authorization", "traceparent", "tracestate", "content-type"})
LARGEST_FLOAT = float(np.finfo(np.float32).max)
MAX_CHARS_PER_TOKEN = (
    32  # of a prompt, on average: 4 are usual, and one token of some vocabularies stands for 128 blanks
)
MAX_BYTES_PER_CHAR = 8  # in UTF-8, or as an escape within the JSON of messages
TRITON_PREFIXES = ("triton_", "sequence_", "binary_data", "x-")


@dataclass(slots=True, frozen=True)
class Field:
    """How a tensor becomes an option of that name."""

    name: str
    read: Callable[[str, np.ndarray], Any]


OPTIONS = {
    "max_tokens": Field("max_tokens", read_int),
    "min_tokens": Field("min_tokens", read_int),
    "temperature": Field("temperature", read_float),
    "top_k": Field("top_k", read_int),
    "top_p": Field("top_p", read_float),
    "min_p": Field("min_p", read_float),
    "repetition_penalty": Field("repetition_penalty", read_float),
    "presence_penalty": Field("presence_penalty", read_float),
    "frequency_penalty": Field("frequency_penalty", read_float),
    "random_seed": Field("seed", read_int),
    "stop_words": Field("stop", read_texts),
    "stop_token_ids": Field("stop_token_ids", read_ids),
    "ignore_eos": Field("ignore_eos", read_bool),
    "return_log_probs": Field("logprobs", read_bool),
    "num_top_log_probs": Field("top_logprobs", read_int),
    "return_prompt_log_probs": Field("prompt_logprobs", read_bool),
    "num_return_sequences": Field("n", read_int),
    "echo": Field("echo", read_bool),
    "bad_words": Field("bad_words", read_texts),
    "logit_bias": Field("logit_bias", read_object),
}
TASKS = {
    "adapter": Field("adapter", read_string),
    "embed": Field("embed", read_string),
    "normalize_embedding": Field("normalize_embedding", read_bool),
}
KNOWN_TENSORS = frozenset(
    {*PROMPTS, *OPTIONS, *TASKS, TOOLS, "stream", "sampling_parameters", RESUME, GUIDE_TYPE, GUIDE}
)


@dataclass(slots=True, frozen=True)
class PreparedRequest:
    """A prompt and its options, ready for the engine."""

    prompt_ids: list[int]
    options: str
    resume_ids: tuple[int, ...] = ()


@dataclass(slots=True, frozen=True)
class RequestReader:
    """Reads requests for one model."""

    tokenizer: Tokenizer
    info: ModelInfo

    def read(self, tensors: Mapping[str, np.ndarray], parameters: str) -> PreparedRequest:
        """Check one request and prepare it.

        Args:
            tensors: the request's input tensors by name.
            parameters: the request's parameters as Triton gives them: a JSON object, or nothing.

        Raises:
            InvalidRequest: the request can never be served; the message says why.
        """
        given = read_parameters(parameters)
        unknown = sorted(set(tensors) - KNOWN_TENSORS)
        if unknown:
            raise InvalidRequest(f"unknown input tensor {unknown[0]!r}; known are: {', '.join(sorted(KNOWN_TENSORS))}")
        asked = _read_json_options(tensors)
        others = {*SCHEDULING_OPTIONS, *TASK_OPTIONS}
        params = _read_sampling(tensors, {k: v for k, v in asked.items() if k not in others})
        task = _read_task(tensors, {k: v for k, v in asked.items() if k in TASK_OPTIONS})
        scheduling = read_scheduling(given, asked)
        stream = read_bool("stream", tensors["stream"]) if "stream" in tensors else streams_by_default(given)
        prompt_ids = self._read_prompt(tensors)
        resume_ids = read_resume(tensors)
        check_request(prompt_ids, params, self.info, resumed_output(prompt_ids, params, resume_ids), task)
        return PreparedRequest(prompt_ids, RequestOptions(params, scheduling, stream, task).to_json(), resume_ids)

    def _read_prompt(self, tensors: Mapping[str, np.ndarray]) -> list[int]:
        given = [name for name in PROMPTS if name in tensors]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise InvalidRequest(f"exactly one of {', '.join(PROMPTS)} must be given, got {found}")
        name = given[0]
        if TOOLS in tensors and name != "messages":
            raise InvalidRequest(f"tools are for messages, not for {name}")
        if name == "input_ids":
            return list(read_ids(name, tensors[name]))
        max_chars = MAX_CHARS_PER_TOKEN * self.info.max_model_len
        text = read_string(name, tensors[name], MAX_BYTES_PER_CHAR * max_chars)
        if name == "messages":
            tools = parse_tools(read_string(TOOLS, tensors[TOOLS])) if TOOLS in tensors else None
            return self.tokenizer.encode_chat(parse_messages(text), tools, max_chars=max_chars)
        if not text:
            raise InvalidRequest("text_input is empty: at least 1 character is needed")
        return self.tokenizer.encode(text, max_chars=max_chars)


def read_resume(tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the tokens behind which a request goes on; none where it begins.

    Raises:
        InvalidRequest: they are no integers.
    """
    return read_ids(RESUME, tensors[RESUME]) if RESUME in tensors else ()


def read_parameters(text: str) -> dict[str, Any]:
    """Read a request's parameters and refuse unknown names.

    Raises:
        InvalidRequest: a parameter that neither we nor Triton know.
    """
    check_size("request parameters", text, MAX_OPTION_BYTES)
    given = json_object("request parameters", text) if text else {}
    for name in sorted(given):
        lower = name.lower()
        if name not in KNOWN_PARAMETERS and lower not in FORWARDED_HEADERS and not lower.startswith(TRITON_PREFIXES):
            raise InvalidRequest(
                f"unknown request parameter {name!r}; options are input tensors ({', '.join(sorted(KNOWN_TENSORS))})"
            )
    return given


def streams_by_default(parameters: Mapping[str, Any]) -> bool:
    """Say whether a request without `stream` gets chunks: where it surely came by gRPC.

    Triton's models cannot see which endpoint a request came by, and /generate allows one response only. What tells
    gRPC is the key our gateway appends, or gRPC's user agent where Triton forwards that header.
    """
    headers = {name.lower(): str(value) for name, value in parameters.items()}
    return KEY_PARAMETER in parameters or headers.get("user-agent", "").startswith("grpc")


def _read_json_options(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "sampling_parameters" not in tensors:
        return {}
    text = read_string("sampling_parameters", tensors["sampling_parameters"])
    asked = json_object("sampling_parameters", text)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}


def _read_sampling(tensors: Mapping[str, np.ndarray], asked: Mapping[str, Any]) -> SamplingParams:
    values = dict(asked)
    for name, field in OPTIONS.items():
        if name in tensors:
            _add_option(values, field.name, name, field.read(name, tensors[name]))
    if GUIDE in tensors or GUIDE_TYPE in tensors:
        _add_option(values, "guided", GUIDE, _read_guide(tensors))
    return SamplingParams.from_mapping(values)


def _read_task(tensors: Mapping[str, np.ndarray], asked: Mapping[str, Any]) -> TaskParams:
    values = dict(asked)
    for name, field in TASKS.items():
        if name in tensors:
            _add_option(values, field.name, name, field.read(name, tensors[name]))
    return TaskParams.from_mapping(values)


def _add_option(values: dict[str, Any], option: str, tensor: str, value: object) -> None:
    if option in values and not _same(values[option], value):
        raise InvalidRequest(
            f"{tensor} is given twice and differently: {value!r} as a tensor and {values[option]!r} as "
            f"{option} in sampling_parameters"
        )
    values.setdefault(option, value)


def _read_guide(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if GUIDE_TYPE not in tensors:
        raise InvalidRequest(f"{GUIDE} needs {GUIDE_TYPE}, one of {', '.join(sorted(GUIDE_TYPES))}")
    named = read_string(GUIDE_TYPE, tensors[GUIDE_TYPE])
    if named not in GUIDE_TYPES:
        raise InvalidRequest(f"{GUIDE_TYPE} must be one of {', '.join(sorted(GUIDE_TYPES))}, got {named!r}")
    kind = GUIDE_TYPES[named]
    if kind == "json_object":
        if GUIDE in tensors:
            raise InvalidRequest(f"{GUIDE_TYPE} {named} takes no {GUIDE}")
        return {kind: True}
    if GUIDE not in tensors:
        raise InvalidRequest(f"{GUIDE_TYPE} {named} needs {GUIDE}")
    text = read_string(GUIDE, tensors[GUIDE])
    return {kind: _read_choices(text) if kind == "choice" else text}


def _read_choices(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{GUIDE} is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise InvalidRequest(f"{GUIDE} must be a JSON list")
    return value


def _same(first: object, second: object) -> bool:
    if isinstance(first, int | float) and isinstance(second, float) and not isinstance(first, bool):
        return abs(first) <= LARGEST_FLOAT and bool(np.float32(first) == np.float32(second))
    return type(first) is type(second) and first == second
