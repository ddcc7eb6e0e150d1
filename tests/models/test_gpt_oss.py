"""gpt-oss against transformers: sinks, alternating windows, yarn, clamped experts with biases."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
    "odd sizes, tied, clamped": {
        "num_local_experts": 3,
        "num_experts_per_tok": 3,
        "intermediate_size": 36,
        "head_dim": 24,
        "num_key_value_heads": 4,
        "sliding_window": 13,
        "tie_word_embeddings": True,
        "initializer_range": 0.6,
        "seed": 1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gpt_oss_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    model = make_model("GptOss", **VARIANTS[variant])
    check_logits(model)
    check_greedy(model)
