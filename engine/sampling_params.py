"""What a request may ask of sampling and stopping, checked once at the edge.

Knows names, types, defaults and limits. Does not know tensors, tokenizers or where the values came from.

Invariants:
1. A `SamplingParams` that exists is valid: every construction path goes through `__post_init__`.
2. Nothing is clamped: a value outside its limits is refused with the limit and the value.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from typing import Any

from engine.errors import InvalidRequest

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
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

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequest: a value has the wrong type or lies outside its limits.
        """
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}")
        if self.temperature is not None:
            _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_int("top_k", self.top_k, 0, 2**31 - 1)
        _check_float("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above_low=True)
        _check_float("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_float("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        _check_bool("ignore_eos", self.ignore_eos)
        _check_bool("logprobs", self.logprobs)
        _check_stop(self.stop)
        _check_stop_token_ids(self.stop_token_ids)

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
        return cls(**values)

    def to_json(self) -> str:
        """Return the canonical JSON object that `from_mapping` takes back, defaults left out."""
        defaults = SamplingParams()
        changed = {k: v for k, v in asdict(self).items() if v != getattr(defaults, k)}
        return json.dumps(changed, separators=(",", ":"))


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}")


def _check_float(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise InvalidRequest(f"{name} must be a finite number, got {value!r}")
    if value > high or value < low or (above_low and value == low):
        bound = f"above {low:g} and at most {high:g}" if above_low else f"between {low:g} and {high:g}"
        raise InvalidRequest(f"{name} must be {bound}, got {value:g}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, got {value!r}")


def _check_stop(stop: object) -> None:
    if not isinstance(stop, tuple) or not all(isinstance(s, str) for s in stop):
        raise InvalidRequest(f"stop must be a list of strings, got {stop!r}")
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(stop)}")
    for s in stop:
        if not 1 <= len(s) <= MAX_STOP_STRING_CHARS:
            raise InvalidRequest(f"a stop string must have 1 to {MAX_STOP_STRING_CHARS} characters, got {len(s)}")


def _check_stop_token_ids(ids: object) -> None:
    if not isinstance(ids, tuple):
        raise InvalidRequest(f"stop_token_ids must be a list of integers, got {ids!r}")
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} entries, got {len(ids)}")
    for token_id in ids:
        _check_int("stop_token_ids", token_id, 0, 2**31 - 1)
