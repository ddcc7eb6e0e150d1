"""Mixture-of-experts families against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits, core_for

QWEN_SIZES = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "norm_topk_prob": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral, windowed, tied, all experts at once": (
        "Mixtral",
        {
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "head_dim": 24,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
            "seed": 1,
        },
    ),
    "qwen2-moe": ("Qwen2Moe", QWEN_SIZES | {"shared_expert_intermediate_size": 37}),
    "qwen2-moe, some layers dense, weights not scaled, no biases, windows": (
        "Qwen2Moe",
        QWEN_SIZES
        | {
            "shared_expert_intermediate_size": 16,
            "norm_topk_prob": False,
            "qkv_bias": False,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 8,
            "seed": 1,
        },
    ),
    "qwen3-moe": ("Qwen3Moe", QWEN_SIZES | {"head_dim": 16}),
    "qwen3-moe, tied, weights not scaled, one dense layer, biases, windowed": (
        "Qwen3Moe",
        QWEN_SIZES
        | {
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "seed": 1,
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_experts_say_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    family, options = VARIANTS[variant]
    model = make_model(family, **options)
    check_logits(model)
    check_greedy(model)


def test_more_experts_for_a_token_than_there_are_is_refused(
    make_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = make_model("Mixtral", num_local_experts=5, num_experts_per_tok=2)
    text = (model.path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 6'))
    with pytest.raises(ModelError, match="6 of 5 experts"):
        core_for(tmp_path)
