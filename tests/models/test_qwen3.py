"""Qwen3 against transformers: norms on queries and keys."""

from collections.abc import Callable

import pytest

from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits

VARIANTS = {
    "grouped-query, untied": {"head_dim": 16},
    "multi-head, biases, tied": {
        "num_key_value_heads": 4,
        "head_dim": 24,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "seed": 1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_qwen3_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    model = make_model("Qwen3", **VARIANTS[variant])
    check_logits(model)
    check_greedy(model)
