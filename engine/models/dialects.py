"""How each architecture spells its configuration, translated into one vocabulary.

Knows each family's keys, what they default to and what the family fixes without a key. Does not know tensors.

A dialect is a function from the file's keys, defaults filled in, to the same with these keys set, which all families
share: `windows`, `qkv_bias`, `output_bias`, `mlp_bias`, `activation`, `moe`, and where they exist
`query_pre_attn_scalar`, `attn_logit_softcapping`, `final_logit_softcapping`.

The defaults are those of transformers' configuration classes, since published files leave keys out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ModelError, UnsupportedModel
from engine.models.moe_config import MoEConfig
from engine.models.rope_config import LAYER_TYPES

Raw = dict[str, Any]
Windows = tuple[int | None, ...]


@dataclass(slots=True, frozen=True)
class Dialect:
    """One architecture's way of writing config.json."""

    translate: Callable[[Raw], Raw]
    defaults: Raw = field(default_factory=dict)
    rope_aliases: dict[str, str] = field(default_factory=dict)
    has_partial_rope: bool = False


def by_layer_types(raw: Raw, default: Callable[[int], bool]) -> Windows:
    """Return each layer's window from `layer_types`, else from `default`, which says of an index if it is windowed."""
    count = raw["num_hidden_layers"]
    types = raw.get("layer_types") or [LAYER_TYPES[default(index)] for index in range(count)]
    unknown = [name for name in types if name not in LAYER_TYPES]
    if unknown:
        raise UnsupportedModel(f"layers of type {unknown[0]!r} are not implemented; this engine has: {LAYER_TYPES}")
    if len(types) != count:
        raise ModelError(f"config.json lists {len(types)} layer_types for {count} layers")
    return tuple(raw["sliding_window"] if name == "sliding_attention" else None for name in types)


def every_layer(raw: Raw) -> Windows:
    """Return `sliding_window`, or none, for all layers."""
    return (raw.get("sliding_window"),) * raw["num_hidden_layers"]


def _plain(raw: Raw, *, qkv_bias: bool = False, output_bias: bool = False, mlp_bias: bool = False) -> Raw:
    """Set what most families agree on."""
    return raw | {
        "windows": (None,) * raw["num_hidden_layers"],
        "qkv_bias": qkv_bias,
        "output_bias": output_bias,
        "mlp_bias": mlp_bias,
        "activation": raw.get("hidden_act", "silu"),
        "moe": None,
    }


def _llama(raw: Raw) -> Raw:
    bias = raw["attention_bias"]
    return _plain(raw, qkv_bias=bias, output_bias=bias, mlp_bias=raw["mlp_bias"])


def _mistral(raw: Raw) -> Raw:
    return _plain(raw) | {"windows": every_layer(raw)}


def _qwen_windows(raw: Raw) -> Windows:
    is_on = raw["use_sliding_window"] and raw["sliding_window"] is not None
    windows = by_layer_types(raw, lambda index: is_on and index >= raw["max_window_layers"])
    return windows if is_on else (None,) * len(windows)


def _qwen2(raw: Raw) -> Raw:
    return _plain(raw, qkv_bias=True) | {"windows": _qwen_windows(raw)}


def _qwen3(raw: Raw) -> Raw:
    return _plain(raw, qkv_bias=raw["attention_bias"], output_bias=raw["attention_bias"]) | {
        "windows": _qwen_windows(raw)
    }


def _mixtral(raw: Raw) -> Raw:
    moe = MoEConfig(
        num_experts=_num_experts(raw),
        num_experts_per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["intermediate_size"],
        norm_topk=True,
        sparse_layers=frozenset(range(raw["num_hidden_layers"])),
    )
    return _plain(raw) | {"windows": every_layer(raw), "moe": moe}


def _qwen_moe(raw: Raw, shared_intermediate_size: int | None) -> MoEConfig:
    step, dense = raw["decoder_sparse_step"], raw["mlp_only_layers"] or ()
    layers = range(raw["num_hidden_layers"])
    return MoEConfig(
        num_experts=_num_experts(raw),
        num_experts_per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["moe_intermediate_size"],
        norm_topk=raw["norm_topk_prob"],
        sparse_layers=frozenset(index for index in layers if index not in dense and (index + 1) % step == 0),
        shared_intermediate_size=shared_intermediate_size,
    )


def _qwen2_moe(raw: Raw) -> Raw:
    is_on = raw["use_sliding_window"] and raw["sliding_window"] is not None
    windows = by_layer_types(raw, lambda index: is_on and index % 2 == 0 and index < raw["max_window_layers"])
    moe = _qwen_moe(raw, raw["shared_expert_intermediate_size"])
    return _plain(raw, qkv_bias=raw["qkv_bias"]) | {"windows": windows, "moe": moe}


def _qwen3_moe(raw: Raw) -> Raw:
    is_on, bias = raw["use_sliding_window"], raw["attention_bias"]
    windows = every_layer(raw if is_on else {**raw, "sliding_window": None})
    return _plain(raw, qkv_bias=bias, output_bias=bias) | {"windows": windows, "moe": _qwen_moe(raw, None)}


def _gemma(raw: Raw, pattern: int) -> Raw:
    """Windowed layers, and after every `pattern` - 1 of them one that attends to everything."""
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedModel("use_bidirectional_attention is not implemented")
    bias = raw["attention_bias"]
    return _plain(raw, qkv_bias=bias, output_bias=bias) | {
        "windows": by_layer_types(raw, lambda index: (index + 1) % pattern != 0),
        "activation": raw["hidden_activation"],
    }


def _gemma2(raw: Raw) -> Raw:
    return _gemma(raw, pattern=2)


def _gemma3(raw: Raw) -> Raw:
    return _gemma(raw, pattern=raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6)


def _phi3(raw: Raw) -> Raw:
    return _plain(raw) | {"windows": every_layer(raw)}


def _gpt_oss(raw: Raw) -> Raw:
    for name, expected in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if raw.get(name, expected) != expected:
            raise UnsupportedModel(f"{name} {raw[name]} is not implemented; this engine has: {expected}")
    bias = raw["attention_bias"]
    windows = by_layer_types(raw, lambda index: index % 2 == 0)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or GPT_OSS_ROPE
    return _mixtral(raw) | {"windows": windows, "qkv_bias": bias, "output_bias": bias, "rope_parameters": rope}


def _num_experts(raw: Raw) -> int:
    return raw["num_local_experts"] if "num_local_experts" in raw else raw["num_experts"]


QWEN_MOE: Raw = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": (),
    "norm_topk_prob": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
GEMMA: Raw = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
GEMMA2: Raw = {
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3: Raw = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
}
GPT_OSS: Raw = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "rope_theta": 150000.0,
}
GPT_OSS_ROPE: Raw = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
QWEN_WINDOWS: Raw = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

DIALECTS: dict[str, Dialect] = {
    "LlamaForCausalLM": Dialect(_llama, {"attention_bias": False, "mlp_bias": False}),
    "MistralForCausalLM": Dialect(_mistral, {"num_key_value_heads": 8, "sliding_window": 4096}),
    "Qwen2ForCausalLM": Dialect(_qwen2, {"num_key_value_heads": 32} | QWEN_WINDOWS),
    "Qwen3ForCausalLM": Dialect(
        _qwen3, {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False} | QWEN_WINDOWS
    ),
    "MixtralForCausalLM": Dialect(
        _mixtral,
        {"num_key_value_heads": 8, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_experts_per_tok": 2},
    ),
    "Qwen2MoeForCausalLM": Dialect(_qwen2_moe, {"qkv_bias": True, "max_window_layers": 28} | QWEN_MOE),
    "Qwen3MoeForCausalLM": Dialect(_qwen3_moe, {"num_key_value_heads": 4, "attention_bias": False} | QWEN_MOE),
    "Gemma2ForCausalLM": Dialect(_gemma2, GEMMA | GEMMA2),
    "Gemma3ForCausalLM": Dialect(_gemma3, GEMMA | GEMMA3),
    "Gemma3ForConditionalGeneration": Dialect(_gemma3, GEMMA | GEMMA3),
    "GptOssForCausalLM": Dialect(_gpt_oss, GPT_OSS),
    "Phi3ForCausalLM": Dialect(
        _phi3,
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        has_partial_rope=True,
    ),
}
