"""What a request may ask of sampling and stopping, checked once at the edge.

Knows names, types, defaults and limits. Does not know tensors, tokenizers or where the values came from.

Invariants:
1. A `SamplingParams` that exists is valid: every construction path goes through `__post_init__`.
2. Nothing is clamped: a value outside its limits is refused with the limit and the value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

from engine.config import MAX_DRAFT_TOKENS, SPECULATION_METHODS
from engine.errors import InvalidRequest
from engine.guided_options import Guided
from engine.option_checks import MAX_ID, check_bool, check_float, check_ids, check_int, check_strings

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_SEQUENCES = 128
MAX_TOP_LOG_PROBS = 20
MAX_BIASED_TOKENS = 1024
MAX_BAD_WORDS = 256
MAX_SEED = 2**64 - 1


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """Options of one request.

    Attributes:
        max_tokens: most tokens to generate, at least 1; None means up to the model's limit.
        min_tokens: end-of-sequence, stop tokens and stop strings are held off until this many are generated.
        temperature: 0 is greedy; None is 1 where top_k, top_p, min_p or seed asks for sampling, and greedy otherwise.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens of prompt and output; 1 is off.
        presence_penalty: subtracted from logits of tokens seen in the output; 0 is off.
        frequency_penalty: subtracted once for each time a token occurs in the output; 0 is off.
        seed: random numbers are a function of (seed, position); None draws a fresh seed.
        stop: strings that end the text and are not part of it.
        stop_token_ids: tokens that end the sequence, besides the model's own.
        ignore_eos: go on past the model's end-of-sequence tokens.
        logprobs: return the log-probability of each generated token.
        top_logprobs: and those of this many likeliest tokens in its place.
        prompt_logprobs: return the log-probability of each prompt token.
        n: sequences to generate from the prompt; number i draws as a request with `seed + i` would.
        echo: begin the output with the prompt.
        logit_bias: pairs of a token and what is added to its logit.
        bad_words: texts whose tokens may not follow each other.
        guided: what the text must follow.
        speculation: how draft tokens are made, `off`, `ngram` or `draft`, or how many in a step; None leaves it to the
            engine. The output is the same.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    n: int = 1
    echo: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    guided: Guided | None = None
    speculation: str | int | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequest: a value has the wrong type or lies outside its limits.
        """
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}")
        if self.temperature is not None:
            check_float("temperature", self.temperature, 0.0, 100.0)
        check_int("top_k", self.top_k, 0, 2**31 - 1)
        check_float("top_p", self.top_p, 0.0, 1.0, above_low=True)
        check_float("min_p", self.min_p, 0.0, 1.0)
        check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above_low=True)
        check_float("presence_penalty", self.presence_penalty, -100.0, 100.0)
        check_float("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            check_int("seed", self.seed, 0, MAX_SEED)
        check_bool("ignore_eos", self.ignore_eos)
        check_bool("logprobs", self.logprobs)
        check_strings("stop", "a stop string", self.stop, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        self._check_extras()

    def _check_extras(self) -> None:
        check_int("n", self.n, 1, MAX_SEQUENCES)
        check_int("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOG_PROBS)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(f"top_logprobs needs logprobs, got {self.top_logprobs} without it")
        check_bool("prompt_logprobs", self.prompt_logprobs)
        check_bool("echo", self.echo)
        check_strings("bad_words", "a bad word", self.bad_words, MAX_BAD_WORDS, MAX_STOP_STRING_CHARS)
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise InvalidRequest(f"logit_bias takes at most {MAX_BIASED_TOKENS} tokens, got {len(self.logit_bias)}")
        self._check_speculation()
        for token_id, bias in self.logit_bias:
            check_int("logit_bias", token_id, 0, MAX_ID)
            check_float(f"logit_bias of token {token_id}", bias, -100.0, 100.0)

    def _check_speculation(self) -> None:
        if isinstance(self.speculation, str) and self.speculation not in SPECULATION_METHODS:
            known = ", ".join(SPECULATION_METHODS)
            raise InvalidRequest(f"speculation must be one of {known} or a number, got {self.speculation!r}")
        if self.speculation is not None and not isinstance(self.speculation, str):
            check_int("speculation", self.speculation, 0, MAX_DRAFT_TOKENS)

    @property
    def effective_temperature(self) -> float:
        """The temperature to sample with; 0 is greedy."""
        if self.temperature is not None:
            return self.temperature
        asks = self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.seed is not None
        return 1.0 if asks else 0.0

    def with_seed_of(self, key: str) -> "SamplingParams":
        """Return these options with a seed made of `key`, where they sample and have none.

        So a request that is sent again under its key, to whichever engine, draws the same numbers.
        """
        if self.seed is not None or self.effective_temperature == 0:
            return self
        seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
        return replace(self, seed=seed, temperature=self.effective_temperature)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> "SamplingParams":
        """Build from a decoded JSON object; lists become tuples.

        Raises:
            InvalidRequest: an unknown name, a wrong type, or a value outside its limits.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InvalidRequest(f"unknown sampling parameter {unknown[0]!r}; known are: {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        if "logit_bias" in values:
            values["logit_bias"] = _read_bias(values["logit_bias"])
        if values.get("guided") is not None:
            values["guided"] = Guided.from_json(values["guided"])
        return cls(**values)

    def to_json(self) -> str:
        """Return the canonical JSON object that `from_mapping` takes back, defaults left out."""
        defaults = SamplingParams()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
        if self.logit_bias:
            changed["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias}
        if self.guided is not None:
            changed["guided"] = self.guided.to_json()
        return json.dumps(changed, separators=(",", ":"))


def _read_bias(value: object) -> tuple[tuple[int, float], ...]:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise InvalidRequest(f"logit_bias must be an object of token ids and numbers, got {value!r}")
    for name in value:
        if not isinstance(name, str) or not name.isascii() or not name.isdigit():
            raise InvalidRequest(f"logit_bias must have token ids as names, got {name!r}")
    return tuple((int(name), bias) for name, bias in value.items())
