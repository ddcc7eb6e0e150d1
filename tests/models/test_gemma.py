"""Gemma 2 and 3 against transformers: windows, soft caps, four norms a layer, two ropes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import UnsupportedModel
from engine.models.config import ModelConfig
from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits, core_for, greedy, random_prompts

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma 2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 9}),
    "gemma 2 untied, biases, tight caps": (
        "Gemma2",
        {
            "head_dim": 24,
            "sliding_window": 13,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "num_key_value_heads": 4,
            "seed": 1,
        },
    ),
    "gemma 3": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "gemma 3, ropes stretched apart": (
        "Gemma3",
        {
            "head_dim": 24,
            "num_key_value_heads": 4,
            "sliding_window": 13,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "seed": 1,
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gemma_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    family, options = VARIANTS[variant]
    model = make_model(family, **({"tie_word_embeddings": True} | options))
    check_logits(model)
    check_greedy(model)


def config_of(path: Path, **keys: object) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(keys))
    return ModelConfig.from_dir(path)


def test_gemma_3_as_published_leaves_most_keys_out(tmp_path: Path) -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 12, "sliding_window": 1024}
    rope = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = config_of(tmp_path, architectures=["Gemma3ForCausalLM"], text_config=text | rope)
    assert config.windows == ((1024,) * 5 + (None,)) * 2
    assert (config.rope.kind, config.rope.theta) == ("linear", 1e6)
    assert config.local_rope is not None
    assert (config.local_rope.kind, config.local_rope.theta) == ("default", 1e4)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert config.tie_word_embeddings


def test_attention_in_both_directions_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        config_of(tmp_path, architectures=["Gemma3ForCausalLM"], use_bidirectional_attention=True, **sizes)


def test_the_language_model_of_a_checkpoint_with_vision_is_served(
    make_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    family, options = VARIANTS["gemma 3"]
    model = make_model(family, **options)
    text = json.loads((model.path / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    shutil.copy(model.path / "tokenizer.json", tmp_path)
    tensors = load_file(model.path / "model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed | {"vision_tower.head.probe": torch.zeros(2)}, tmp_path / "model.safetensors")
    (prompt,) = random_prompts([20])
    assert model.confirms(prompt, greedy(core_for(tmp_path), [prompt])[0].token_ids)
