"""Qwen2 against transformers: biases, and windows in the upper layers only."""

from collections.abc import Callable

import pytest

from engine.models.config import ModelConfig
from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits

VARIANTS = {
    "untied": {},
    "odd sizes, tied": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 42,
        "intermediate_size": 53,
        "vocab_size": 277,
        "tie_word_embeddings": True,
        "seed": 1,
    },
    "upper layers windowed": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "seed": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_qwen2_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    model = make_model("Qwen2", **VARIANTS[variant])
    check_logits(model)
    check_greedy(model)


def test_a_model_with_one_layer_that_sees_all_has_no_window(make_model: Callable[..., TinyModel]) -> None:
    config = ModelConfig.from_dir(make_model("Qwen2", **VARIANTS["upper layers windowed"]).path)
    assert config.windows == (None, 8, 8)
    assert config.sliding_window is None
