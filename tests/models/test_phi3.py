"""Phi-3 against transformers: fused projections, partly turned heads, stretched ropes."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits, core_for, greedy, random_prompts

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [4.0] * 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "windowed, a part of each head turned, tied": {
        "sliding_window": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "seed": 1,
    },
    "long rope within the original length": {"rope_parameters": LONGROPE, "seed": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_phi3_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    sizes = {"original_max_position_embeddings": 256}
    model = make_model("Phi3", **(sizes | VARIANTS[variant]))
    check_logits(model)
    check_greedy(model)


def test_long_factors_serve_sequences_past_the_original_length(make_model: Callable[..., TinyModel]) -> None:
    model = make_model("Phi3", original_max_position_embeddings=32, rope_parameters=LONGROPE, seed=3)
    check_logits(model)
    prompts = random_prompts([33, 47])
    for prompt, completion in zip(prompts, greedy(core_for(model.path), prompts), strict=True):
        assert model.confirms(prompt, completion.token_ids)


@pytest.mark.parametrize("max_model_len", [32, 0])
def test_short_factors_serve_sequences_that_stay_within_it(
    make_model: Callable[..., TinyModel], max_model_len: int
) -> None:
    model = make_model("Phi3", original_max_position_embeddings=32, rope_parameters=LONGROPE, seed=3)
    (prompt,) = random_prompts([8])
    core = core_for(model.path, max_model_len=max_model_len)
    assert model.confirms(prompt, greedy(core, [prompt], num_tokens=24)[0].token_ids)


def test_sequences_share_prefixes_where_they_are_turned_alike(make_model: Callable[..., TinyModel]) -> None:
    model = make_model("Phi3", original_max_position_embeddings=32, rope_parameters=LONGROPE, seed=3)
    (prompt,) = random_prompts([21])
    core = core_for(model.path)
    found: list[int] = []
    for num_tokens in (
        12,
        13,
        11,
        40,
    ):  # 21 + 12 - 1 tokens are computed with the short factors, one more with the long
        (completion,) = greedy(core, [prompt], num_tokens)
        found.append(completion.num_cached_tokens)
        # transformers turns all of one call alike: by the long factors where it has more than 32 tokens
        if len(prompt) + num_tokens > 33:
            assert model.confirms(prompt, completion.token_ids)
        else:
            assert model.greedy(prompt, num_tokens) == completion.token_ids
    assert found == [0, 0, 20, 20]
