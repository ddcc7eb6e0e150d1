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
from engine.messages import ModelInfo
from engine.request_check import check_request, resumed_output
from engine.request_options import RequestOptions, json_object
from engine.sampling_params import SamplingParams
from engine.scheduling_inputs import SCHEDULING_OPTIONS, SCHEDULING_PARAMETERS, read_scheduling
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
TRITON_PREFIXES = ("triton_", "sequence_", "binary_data", "x-")


@dataclass(slots=True, frozen=True)
class Field:
    """How a tensor becomes a field of `SamplingParams`."""

    name: str
    read: Callable[[str, np.ndarray], Any]


def read_text(name: str, raw: object) -> str:
    """Return one element of a BYTES tensor as text.

    Raises:
        InvalidRequest: it is no valid UTF-8.
    """
    if isinstance(raw, str):
        return raw
    try:
        return bytes(raw).decode("utf-8")  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from error


def read_one(name: str, array: np.ndarray) -> Any:
    """Return the only element of `array`.

    Raises:
        InvalidRequest: it has another number of elements.
    """
    if array.size != 1:
        raise InvalidRequest(f"{name} must hold exactly 1 element, got shape {list(array.shape)}")
    return array.reshape(-1)[0]


def _of_kind(name: str, array: np.ndarray, kinds: str, what: str) -> np.ndarray:
    if array.dtype.kind not in kinds:
        raise InvalidRequest(f"{name} must be of type {what}, got {array.dtype}")
    return array


def _read_int(name: str, array: np.ndarray) -> int:
    return int(read_one(name, _of_kind(name, array, "iu", "INT32 or UINT64")))


def _read_float(name: str, array: np.ndarray) -> float:
    value = read_one(name, _of_kind(name, array, "f", "FP32"))
    return float(str(value))  # the shortest decimal: 0.7 and not 0.699999988


def _read_bool(name: str, array: np.ndarray) -> bool:
    return bool(read_one(name, _of_kind(name, array, "b", "BOOL")))


def _read_texts(name: str, array: np.ndarray) -> tuple[str, ...]:
    return tuple(read_text(name, raw) for raw in _of_kind(name, array, "OSU", "BYTES").reshape(-1))


def _read_ids(name: str, array: np.ndarray) -> tuple[int, ...]:
    return tuple(_of_kind(name, array, "iu", "INT32").reshape(-1).tolist())


def read_string(name: str, array: np.ndarray) -> str:
    """Return the text of a BYTES tensor of one element.

    Raises:
        InvalidRequest: another type, another number of elements, or no valid UTF-8.
    """
    return read_text(name, read_one(name, _of_kind(name, array, "OSU", "BYTES")))


def _read_object(name: str, array: np.ndarray) -> dict[str, Any]:
    return json_object(name, read_string(name, array))


OPTIONS = {
    "max_tokens": Field("max_tokens", _read_int),
    "min_tokens": Field("min_tokens", _read_int),
    "temperature": Field("temperature", _read_float),
    "top_k": Field("top_k", _read_int),
    "top_p": Field("top_p", _read_float),
    "min_p": Field("min_p", _read_float),
    "repetition_penalty": Field("repetition_penalty", _read_float),
    "presence_penalty": Field("presence_penalty", _read_float),
    "frequency_penalty": Field("frequency_penalty", _read_float),
    "random_seed": Field("seed", _read_int),
    "stop_words": Field("stop", _read_texts),
    "stop_token_ids": Field("stop_token_ids", _read_ids),
    "ignore_eos": Field("ignore_eos", _read_bool),
    "return_log_probs": Field("logprobs", _read_bool),
    "num_top_log_probs": Field("top_logprobs", _read_int),
    "return_prompt_log_probs": Field("prompt_logprobs", _read_bool),
    "num_return_sequences": Field("n", _read_int),
    "echo": Field("echo", _read_bool),
    "bad_words": Field("bad_words", _read_texts),
    "logit_bias": Field("logit_bias", _read_object),
}
KNOWN_TENSORS = frozenset({*PROMPTS, *OPTIONS, TOOLS, "stream", "sampling_parameters", RESUME, GUIDE_TYPE, GUIDE})


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
        params = _read_sampling(tensors, {k: v for k, v in asked.items() if k not in SCHEDULING_OPTIONS})
        scheduling = read_scheduling(given, asked)
        stream = _read_bool("stream", tensors["stream"]) if "stream" in tensors else streams_by_default(given)
        prompt_ids = self._read_prompt(tensors)
        resume_ids = read_resume(tensors)
        check_request(prompt_ids, params, self.info, resumed_output(prompt_ids, params, resume_ids))
        return PreparedRequest(prompt_ids, RequestOptions(params, scheduling, stream).to_json(), resume_ids)

    def _read_prompt(self, tensors: Mapping[str, np.ndarray]) -> list[int]:
        given = [name for name in PROMPTS if name in tensors]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise InvalidRequest(f"exactly one of {', '.join(PROMPTS)} must be given, got {found}")
        name = given[0]
        if TOOLS in tensors and name != "messages":
            raise InvalidRequest(f"tools are for messages, not for {name}")
        if name == "input_ids":
            return list(_read_ids(name, tensors[name]))
        text = read_string(name, tensors[name])
        if name == "messages":
            tools = parse_tools(read_string(TOOLS, tensors[TOOLS])) if TOOLS in tensors else None
            return self.tokenizer.encode_chat(parse_messages(text), tools)
        if not text:
            raise InvalidRequest("text_input is empty: at least 1 character is needed")
        return self.tokenizer.encode(text)


def read_resume(tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the tokens behind which a request goes on; none where it begins.

    Raises:
        InvalidRequest: they are no integers.
    """
    return _read_ids(RESUME, tensors[RESUME]) if RESUME in tensors else ()


def read_parameters(text: str) -> dict[str, Any]:
    """Read a request's parameters and refuse unknown names.

    Raises:
        InvalidRequest: a parameter that neither we nor Triton know.
    """
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
