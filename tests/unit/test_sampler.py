"""Sampling against transformers' own logits processors, and random numbers that depend on seed and position only."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.logit_rules import LogitRules
from engine.random_numbers import uniforms
from engine.sampler import sample
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence

V = 50


def make_sequence(
    params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 1
) -> Sequence:
    prompt, output = prompt or [1, 2, 3], output or []
    return Sequence(1, prompt + output, len(prompt), params, 100, frozenset({0, *params.stop_token_ids}), seed=seed)


def make_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(params: SamplingParams, logits: torch.Tensor, num_seeds: int = 3000) -> torch.Tensor:
    """Return how often each token is drawn over many seeds, [V]."""
    sequences = [make_sequence(params, seed=seed) for seed in range(num_seeds)]
    tokens = sample(logits.expand(num_seeds, V).clone(), sequences).token_ids
    return torch.bincount(torch.tensor(tokens), minlength=V) / num_seeds


def assert_same_distribution(frequencies: torch.Tensor, probs: torch.Tensor, num_draws: int = 3000) -> None:
    assert not (frequencies[probs == 0] > 0).any(), "a token that should be cut off was drawn"
    kept = probs > 0
    spread = (probs[kept] * (1 - probs[kept]) / num_draws).sqrt()
    assert ((frequencies[kept] - probs[kept]).abs() < 5 * spread + 1e-3).all()


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.zeros(2, V)
    logits[0, 7] = logits[0, 9] = 1.0
    logits[1, 30] = 2.0
    params = SamplingParams(temperature=0.0)
    assert sample(logits, [make_sequence(params)] * 2).token_ids == [7, 30]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_plain_sampling_follows_the_softmax(temperature: float) -> None:
    logits = make_logits()
    expected = (logits[0] / temperature).double().softmax(-1)
    assert_same_distribution(drawn(SamplingParams(temperature=temperature), logits), expected)


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
    ],
)
def test_cut_distributions_are_transformers_cut_distributions(options: dict[str, Any], warper: Any) -> None:
    logits = make_logits(seed=4)
    expected = warper(torch.tensor([[1]]), logits.clone())[0].double().softmax(-1)
    assert_same_distribution(drawn(SamplingParams(temperature=1.0, **options), logits), expected)


def test_repetition_penalty_is_transformers_over_prompt_and_output() -> None:
    logits = make_logits(seed=5)
    sequence = make_sequence(SamplingParams(repetition_penalty=1.7), [1, 2, 2], [9, 30])
    repetition: Any = RepetitionPenaltyLogitsProcessor(1.7)
    expected = repetition(torch.tensor([[1, 2, 2, 9, 30]]), logits.clone())
    sample(logits, [sequence])
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = make_logits(seed=6)
    expected = logits.clone()
    expected[0, 9] -= 0.5 + 2 * 0.25
    expected[0, 30] -= 0.5 + 0.25
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    sample(logits, [make_sequence(params, [1, 2], [9, 30, 9])])
    torch.testing.assert_close(logits, expected)


def test_stop_tokens_cannot_come_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=(4,))
    logits = torch.zeros(1, V)
    logits[0, 0], logits[0, 4], logits[0, 8] = 9.0, 8.0, 7.0
    assert sample(logits.clone(), [make_sequence(params, output=[5])]).token_ids == [8]
    assert sample(logits.clone(), [make_sequence(params, output=[5, 5])]).token_ids == [0]


def test_log_probs_are_the_models_own_whatever_the_options() -> None:
    logits = make_logits(seed=7)
    expected = logits[0].log_softmax(-1)
    params = SamplingParams(temperature=0.7, top_k=3, repetition_penalty=1.5, logprobs=True)
    result = sample(logits, [make_sequence(params)])
    assert result.log_probs[0] == pytest.approx(float(expected[result.token_ids[0]]), abs=1e-6)


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    options = [{}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}, {"presence_penalty": 1.0}]
    logits = make_logits(rows=len(options), seed=8)
    sequences = [
        make_sequence(SamplingParams(**({"temperature": 1.0} | o)), seed=99 + i) for i, o in enumerate(options)
    ]
    together = sample(logits.clone(), sequences).token_ids
    alone = [sample(logits[i : i + 1].clone(), [s]).token_ids[0] for i, s in enumerate(sequences)]
    assert together == alone


def test_a_row_with_a_nan_fails_alone_and_says_why() -> None:
    logits = make_logits(rows=4)
    logits[1, 7], logits[2, 3], logits[3] = math.nan, math.inf, -math.inf
    sequences = [make_sequence(SamplingParams(logprobs=True)) for _ in range(4)]
    result = sample(logits, sequences)
    assert result.token_ids[0] == int(logits[0].argmax())
    assert result.errors[0] is None
    messages = [str(error) for error in result.errors[1:]]
    assert messages[:2] == [f"the model's logits are not finite: the largest is {name}" for name in ("nan", "inf")]
    assert messages[2] == "the request's options forbid every token"


def test_an_exception_in_one_sequences_rules_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rules: LogitRules, token_ids: list[int], num_prompt_tokens: int) -> Any:
        raise ZeroDivisionError("oops") if token_ids[0] == 9 else AssertionError

    monkeypatch.setattr(LogitRules, "adjust", broken)
    sequences = [make_sequence(SamplingParams()), make_sequence(SamplingParams(min_tokens=5), prompt=[9])]
    result = sample(make_logits(rows=2), sequences)
    assert result.errors[0] is None
    assert "ZeroDivisionError('oops')" in str(result.errors[1])


def test_continuing_with_the_output_as_prompt_draws_the_same() -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    logits = make_logits(seed=9)
    first = sample(logits.clone(), [make_sequence(params, [1, 2], [3, 4], seed=5)]).token_ids
    second = sample(logits.clone(), [make_sequence(params, [1, 2, 3, 4], [], seed=5)]).token_ids
    assert first == second


def test_uniform_numbers_are_uniform_over_seeds_and_positions() -> None:
    series, same = np.arange(4000, dtype=np.uint64), np.full(4000, 3, dtype=np.uint64)
    for numbers in (uniforms(series, same), uniforms(same, series)):
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert abs(numbers.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 4000)
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-square with 19 degrees of freedom, p about 1e-4
    assert len(np.unique(uniforms(np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64), np.zeros(4, np.uint64)))) == 4


@pytest.mark.parametrize("temperature", [1e-36, 1e-42, 1e-320])
def test_the_coldest_temperatures_draw_the_likeliest_token(temperature: float) -> None:
    logits = make_logits()
    for top_p in (1.0, 0.9):
        params = SamplingParams(temperature=temperature, top_p=top_p)
        assert sample(logits.clone(), [make_sequence(params)]).token_ids == logits.argmax(dim=-1).tolist()
