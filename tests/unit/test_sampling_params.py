"""Every option is checked, named and never clamped."""

import json
from dataclasses import replace

import pytest

from engine.errors import InvalidRequest
from engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be between 1 and 2147483647, got 0"),
        ({"max_tokens": -5}, "max_tokens must be between 1"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer, got 2.5"),
        ({"max_tokens": True}, "max_tokens must be an integer, got True"),
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens must be at most max_tokens \(8\), got 9"),
        ({"temperature": -0.1}, "temperature must be between 0 and 100, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": 10**400}, "temperature must be a finite number, got 1000"),
        ({"temperature": "hot"}, "temperature must be a finite number, got 'hot'"),
        ({"top_k": -1}, "top_k must be between 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"min_p": 2}, "min_p must be between 0 and 1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be a finite number"),
        ({"frequency_penalty": 1000}, "frequency_penalty must be between -100 and 100, got 1000"),
        ({"seed": -1}, "seed must be between 0"),
        ({"seed": 2**64}, "seed must be between 0"),
        ({"stop": "x"}, "stop must be a list of strings, got 'x'"),
        ({"stop": [""]}, "a stop string must have 1 to 1024 characters, got 0"),
        ({"stop": ["x"] * 65}, "stop takes at most 64 strings, got 65"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must be between 0"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list of integers, got 3"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"logprobs": "yes"}, "logprobs must be true or false"),
        ({"speculation": "fast"}, "speculation must be one of off, ngram, draft or a number, got 'fast'"),
        ({"speculation": 17}, "speculation must be between 0 and 16, got 17"),
        ({"speculation": True}, "speculation must be an integer, got True"),
        ({"temprature": 1}, "unknown sampling parameter 'temprature'; known are: bad_words, echo"),
    ],
)
def test_a_bad_value_is_refused_with_its_limit_and_itself(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams.from_mapping(options)


def test_json_and_back_is_the_same() -> None:
    params = SamplingParams(max_tokens=9, temperature=0.5, stop=("a", "b"), stop_token_ids=(1,), seed=2**64 - 1)
    params = replace(params, speculation=3)
    assert SamplingParams.from_mapping(json.loads(params.to_json())) == params
    assert SamplingParams().to_json() == "{}"


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ({}, 0.0),
        ({"top_k": 5}, 1.0),
        ({"seed": 0}, 1.0),
        ({"top_p": 0.9, "temperature": 0.0}, 0.0),
        ({"temperature": 0.3}, 0.3),
    ],
)
def test_greedy_unless_an_option_asks_for_sampling(options: dict[str, float], temperature: float) -> None:
    assert SamplingParams.from_mapping(options).effective_temperature == temperature


def test_a_key_stands_in_for_a_seed_without_changing_how_tokens_are_chosen() -> None:
    sampled = SamplingParams(top_p=0.9)
    assert sampled.with_seed_of("k") == sampled.with_seed_of("k") != sampled.with_seed_of("other")
    assert sampled.with_seed_of("k").effective_temperature == sampled.effective_temperature
    assert SamplingParams().with_seed_of("k") == SamplingParams()
    assert SamplingParams(seed=3).with_seed_of("k") == SamplingParams(seed=3)
