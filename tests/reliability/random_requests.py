"""Requests as no sane client would mix them: every option, good and bad values, deadlines and continuations."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.guided_options import Guided
from engine.sampling_params import SamplingParams
from engine.scheduling_params import SchedulingParams

VOCABULARY = 300
MAX_MODEL_LEN = 64
PREFIXES = [[(7 * i + k) % 290 + 5 for i in range(40)] for k in range(3)]
GUIDES = [
    Guided("regex", "[a-d]{2}(xy|z)*!"),
    Guided("choice", '["yes", "no", "perhaps"]'),
    Guided("json_schema", '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'),
]

Chooser = Callable[[random.Random], Any]
CHOICES: dict[str, tuple[float, Chooser]] = {
    "min_tokens": (0.1, lambda rng: rng.randint(0, 3)),
    "temperature": (0.5, lambda rng: rng.choice((0.0, 0.7, 1.0, 3.0))),
    "top_k": (0.2, lambda rng: rng.randint(0, 50)),
    "top_p": (0.2, lambda rng: rng.uniform(0.1, 1.0)),
    "min_p": (0.1, lambda rng: rng.uniform(0.0, 0.3)),
    "repetition_penalty": (0.15, lambda rng: rng.uniform(0.5, 2.0)),
    "presence_penalty": (0.1, lambda rng: rng.uniform(-1.0, 1.0)),
    "frequency_penalty": (0.1, lambda rng: rng.uniform(-1.0, 1.0)),
    "seed": (0.5, lambda rng: rng.randrange(2**64)),
    "stop": (0.2, lambda rng: tuple(rng.choice("abcxyz<>") for _ in range(rng.randint(1, 4)))),
    "stop_token_ids": (0.2, lambda rng: tuple(rng.sample(range(VOCABULARY), 20))),
    "ignore_eos": (0.5, lambda rng: rng.random() < 0.5),
    "logprobs": (0.2, lambda _: True),
    "prompt_logprobs": (0.1, lambda _: True),
    "echo": (0.1, lambda _: True),
    "n": (0.1, lambda rng: rng.randint(1, 4)),
    "logit_bias": (0.1, lambda rng: tuple((rng.randrange(VOCABULARY), rng.uniform(-5, 5)) for _ in range(5))),
    "bad_words": (0.1, lambda rng: tuple(rng.choice(("a", "bc", "<260>")) for _ in range(2))),
    "speculation": (0.7, lambda rng: rng.choice(("off", "ngram", "draft", 1, 3, 9))),
}


@dataclass(frozen=True)
class RandomRequest:
    """One request; `is_valid` tells whether the engine should take it."""

    prompt_ids: list[int]
    params: SamplingParams
    resume_ids: tuple[int, ...] = ()
    scheduling: SchedulingParams = field(default_factory=SchedulingParams)
    is_valid: bool = True


def random_request(rng: random.Random) -> RandomRequest:
    """Draw a request; one in thirty can never be served."""
    prompt = rng.choice(PREFIXES)[: rng.randint(1, 36)] + [rng.randrange(5, VOCABULARY)] * rng.randint(0, 3)
    options = {name: choose(rng) for name, (chance, choose) in CHOICES.items() if rng.random() < chance}
    options["max_tokens"] = rng.randint(max(1, options.get("min_tokens", 0)), 16)
    resume_ids = ()
    if rng.random() < 0.03:
        options = {"max_tokens": 12, "guided": rng.choice(GUIDES), "speculation": rng.choice(("off", "ngram", "draft"))}
    elif rng.random() < 0.05 and options.get("n", 1) == 1:
        resume_ids = tuple(rng.randrange(5, VOCABULARY) for _ in range(rng.randint(1, options["max_tokens"])))
    params, scheduling = SamplingParams(**options), _random_scheduling(rng)
    if rng.random() < 1 / 30:
        bad = rng.choice(([], [VOCABULARY], [5] * MAX_MODEL_LEN))
        return RandomRequest(bad, params, resume_ids, scheduling, is_valid=False)
    return RandomRequest(prompt, params, resume_ids, scheduling)


def _random_scheduling(rng: random.Random) -> SchedulingParams:
    return SchedulingParams(
        tenant=rng.choice(("", "a", "b", "c")),
        tenant_weight=rng.randint(1, 3),
        priority_class=rng.randint(0, 9),
        deadline_ms=rng.choice((1, 5, 20, 60)) if rng.random() < 0.1 else None,
        cache_salt=rng.choice(("", "", "", "s")),
        enable_prefix_cache=rng.random() < 0.9,
    )
