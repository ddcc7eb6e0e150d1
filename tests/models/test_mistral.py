"""Mistral against transformers: windows shorter than the prompts and than the answers."""

from collections.abc import Callable

import pytest

from engine.models.config import ModelConfig
from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits

VARIANTS = {
    "window of two blocks": {"sliding_window": 8},
    "odd window, wide heads, tied": {"sliding_window": 13, "head_dim": 24, "tie_word_embeddings": True, "seed": 1},
    "no window": {"sliding_window": None, "seed": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_mistral_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    model = make_model("Mistral", **VARIANTS[variant])
    check_logits(model)
    check_greedy(model)


def test_the_window_of_all_layers_is_known_to_who_frees_blocks(make_model: Callable[..., TinyModel]) -> None:
    assert ModelConfig.from_dir(make_model("Mistral", sliding_window=8).path).sliding_window == 8
    config = ModelConfig.from_dir(make_model("Mistral", sliding_window=None, seed=2).path)
    assert config.sliding_window is None
    assert config.windows == (None, None, None)
