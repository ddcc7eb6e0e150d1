"""Penalties, biases and bans against plain loops over tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.logit_rules import LogitRules, bad_sequences
from engine.sampling_params import SamplingParams
from engine.token_counts import TokenCounts

V = 40
IDS = st.integers(0, V - 1)


def changed(rules: LogitRules, token_ids: list[int], num_prompt: int, logits: np.ndarray) -> np.ndarray:
    """Apply an adjustment token by token."""
    made, result = rules.adjust(token_ids, num_prompt), logits.copy()
    assert len(set(made.ids.tolist())) == len(made.ids)
    for token_id, penalty, value in zip(made.ids, made.penalties, made.added, strict=True):
        result[token_id] *= penalty if result[token_id] < 0 else 1 / penalty
        result[token_id] += value
    return result


@given(st.lists(IDS, min_size=1, max_size=30), st.lists(IDS, max_size=90), st.integers(1, 5))
def test_counts_caught_up_in_any_steps_are_those_of_the_whole(
    prompt: list[int], output: list[int], stride: int
) -> None:
    counts, whole = TokenCounts(), prompt + output
    for end in (*range(len(prompt), len(whole), stride), len(whole)):
        counts.catch_up(whole[:end], len(prompt))
    assert counts.ids.tolist() == list(dict.fromkeys(whole))
    assert counts.output_counts.tolist() == [output.count(token_id) for token_id in dict.fromkeys(whole)]


def test_all_rules_together_are_a_plain_loop_over_the_vocabulary() -> None:
    params = SamplingParams(
        repetition_penalty=1.5,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias=((3, 5.0), (8, -100.0), (9, 0.5)),
        min_tokens=9,
    )
    prompt, output = [1, 2, 3], [3, 8, 8, 9]
    logits = np.linspace(-4, 4, V, dtype=np.float32)
    expected = logits.copy()
    for token_id in (1, 2, 3, 8, 9):
        expected[token_id] = expected[token_id] * 1.5 if expected[token_id] < 0 else expected[token_id] / 1.5
    for token_id in (3, 8, 9):
        expected[token_id] -= 0.3 + 0.2 * output.count(token_id)
    for token_id, bias in params.logit_bias:
        expected[token_id] += bias
    expected[[0, 7]] = -np.inf
    rules = LogitRules(params, frozenset({0, 7}))
    np.testing.assert_allclose(changed(rules, prompt + output, 3, logits), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("token_ids", "forbidden"),
    [([5, 6, 7], {9}), ([5, 6], {8, 9}), ([6, 5], {9}), ([5, 6, 5, 6], {8, 9}), ([6], {9})],
)
def test_the_last_token_of_a_bad_run_is_forbidden_once_the_others_stand(token_ids: list[int], forbidden: set[int]):
    rules = LogitRules(SamplingParams(), frozenset(), ((5, 6, 8), (9,)))
    result = changed(rules, token_ids, 1, np.zeros(V, dtype=np.float32))
    assert set(np.flatnonzero(np.isinf(result)).tolist()) == forbidden


def test_a_bad_word_is_spelt_alone_and_behind_a_space() -> None:
    assert bad_sequences(("ab", " c"), lambda text: [ord(c) for c in text]) == ((32, 97, 98), (32, 99), (97, 98))


def test_requests_without_rules_cost_nothing() -> None:
    assert LogitRules(SamplingParams(temperature=0.5, top_k=3, logprobs=True), frozenset({1})).is_empty
    for params in (SamplingParams(min_tokens=1), SamplingParams(logit_bias=((1, 2.0),))):
        assert not LogitRules(params, frozenset({1})).is_empty
    assert not LogitRules(SamplingParams(), frozenset(), ((1, 2),)).is_empty
