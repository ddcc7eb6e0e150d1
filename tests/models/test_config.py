"""Configurations as they were published, in the spelling of their time, and options that are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError, UnsupportedModel
from engine.models.config import ModelConfig
from engine.models.rope_config import RopeConfig, RopeTables

SIZES = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192}
BASE = SIZES | HEADS
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(path: Path, architecture: str, **keys: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps({"architectures": [architecture]} | BASE | keys))
    return ModelConfig.from_dir(path)


def test_llama_2_has_no_key_value_heads_and_a_rope_of_its_time(tmp_path: Path) -> None:
    config = read(
        tmp_path, "LlamaForCausalLM", num_key_value_heads=None, rope_scaling={"type": "linear", "factor": 2.0}
    )
    assert config.num_kv_heads == 8
    assert (config.rope.kind, config.rope.theta, config.rope.options) == ("linear", 10000.0, {"factor": 2.0})


def test_llama_3_1_as_published(tmp_path: Path) -> None:
    rope = {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"}}
    config = read(tmp_path, "LlamaForCausalLM", eos_token_id=[1, 2, 9999], **rope)
    assert (config.rope.kind, config.rope.theta, config.rope.options) == ("llama3", 500000.0, LLAMA3_ROPE)
    assert config.eos_token_ids == (1, 2)


@pytest.mark.parametrize(("keys", "window"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 7}, 7)])
def test_mistral_is_windowed_unless_it_says_not(tmp_path: Path, keys: dict[str, Any], window: int | None) -> None:
    config = read(tmp_path, "MistralForCausalLM", **keys)
    assert config.windows == (window,) * 4
    assert config.sliding_window == window


def test_qwen_2_5_names_a_window_that_it_does_not_use(tmp_path: Path) -> None:
    config = read(tmp_path, "Qwen2ForCausalLM", sliding_window=131072, use_sliding_window=False, max_window_layers=28)
    assert config.windows == (None,) * 4
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, False, False)


def test_qwen_3_has_heads_wider_than_its_share_and_yarn(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    config = read(tmp_path, "Qwen3ForCausalLM", rope_theta=1e6, rope_scaling=yarn)
    assert config.head_dim == 128
    assert (config.rope.kind, config.rope.theta) == ("yarn", 1e6)


@pytest.mark.parametrize("experts", ["num_experts", "num_local_experts"])
def test_qwen_3_moe_in_both_spellings(tmp_path: Path, experts: str) -> None:
    sparse = {"num_experts_per_tok": 8, "moe_intermediate_size": 24, "norm_topk_prob": True, "mlp_only_layers": [1]}
    moe = read(tmp_path, "Qwen3MoeForCausalLM", **{experts: 16}, **sparse).moe
    assert moe is not None
    assert (moe.num_experts, moe.num_experts_per_token, moe.intermediate_size, moe.norm_topk) == (16, 8, 24, True)
    assert moe.sparse_layers == {0, 2, 3}


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_phi_3_of_128k_as_published(tmp_path: Path, kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = read(
        tmp_path,
        "Phi3ForCausalLM",
        original_max_position_embeddings=4096,
        max_position_embeddings=131072,
        rope_scaling=factors | {"type": kind},
    )
    assert config.rope.kind == "longrope"
    assert config.rope.options == factors | {"original_max_position_embeddings": 4096, "factor": 32.0}


def test_gemma_2_alternates_and_caps_without_being_told(tmp_path: Path) -> None:
    config = read(tmp_path, "Gemma2ForCausalLM", hidden_act="gelu_pytorch_tanh", query_pre_attn_scalar=64)
    assert config.windows == (4096, None, 4096, None)
    assert (config.attention_soft_cap, config.logits_soft_cap, config.attention_scale) == (50.0, 30.0, 0.125)
    assert config.tie_word_embeddings
    assert config.sliding_window is None


def test_gpt_oss_stretches_its_rope_without_being_told(tmp_path: Path) -> None:
    config = read(tmp_path, "GptOssForCausalLM", num_local_experts=4)
    assert (config.rope.kind, config.rope.theta, config.rope.options["factor"]) == ("yarn", 150000.0, 32.0)
    assert config.windows == (128, None, 128, None)


REFUSED: list[tuple[str, dict[str, Any], type[ModelError], str]] = [
    ("LlamaForCausalLM", {"quantization_config": {"quant_method": "hqq"}}, UnsupportedModel, "quantized by 'hqq'"),
    ("GptOssForCausalLM", {"num_local_experts": 4, "swiglu_limit": 9.0}, UnsupportedModel, "swiglu_limit 9.0"),
    ("FalconForCausalLM", {}, UnsupportedModel, "is a FalconForCausalLM; this engine serves: LlamaForCausalLM, Mist"),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": ["chunked"] * 4}, UnsupportedModel, "'chunked'"),
    ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, ModelError, "1 layer_types for 4 layers"),
    ("MistralForCausalLM", {"sliding_window": 0}, ModelError, "the window 0"),
    ("MistralForCausalLM", {"num_key_value_heads": 3}, ModelError, "8 query heads for 3 key/value heads"),
    ("Qwen3ForCausalLM", {"head_dim": 7}, ModelError, "rope needs an even number"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "ntk"}}, UnsupportedModel, "type 'ntk' is not implemented"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 2.0, "x": 1}}, UnsupportedModel, "option 'x'"),
    ("Qwen3MoeForCausalLM", {}, ModelError, "lacks the key 'num_experts'"),
]


@pytest.mark.parametrize(("architecture", "keys", "error", "text"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, architecture: str, keys: dict[str, Any], error: type[ModelError], text: str
) -> None:
    with pytest.raises(error, match=text):
        read(tmp_path, architecture, **keys)


LENGTHS: list[tuple[dict[str, Any] | None, int]] = [
    (None, 8192),
    ({"type": "linear", "factor": 4.0}, 32768),
    ({"type": "dynamic", "factor": 1.5}, 12288),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 32768),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}, 8192),
    (LLAMA3_ROPE | {"rope_type": "llama3"}, 8192),
]


@pytest.mark.parametrize(("scaling", "length"), LENGTHS)
def test_a_stretched_rope_serves_the_sequences_it_is_stretched_for(
    tmp_path: Path, scaling: dict[str, Any] | None, length: int
) -> None:
    assert read(tmp_path, "LlamaForCausalLM", rope_scaling=scaling).max_sequence_length == length


def test_tables_of_angles_lie_one_behind_the_other() -> None:
    rope = RopeConfig(kind="dynamic", options={"factor": 8.0, "max_position_embeddings": 100})
    assert rope.lengths(60) == (100,)
    assert rope.lengths(100) == (100,)
    tables = RopeTables(rope.lengths(390), 390)
    assert tables.lengths == (100, 200, 400)
    assert tables.num_rows == (100, 200, 390)
    assert [tables.first_row(n) for n in (1, 100, 101, 200, 201, 390, 500)] == [0, 0, 100, 100, 300, 300, 300]
