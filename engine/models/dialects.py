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


QWEN_WINDOWS: Raw = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

DIALECTS: dict[str, Dialect] = {
    "LlamaForCausalLM": Dialect(_llama, {"attention_bias": False, "mlp_bias": False}),
    "MistralForCausalLM": Dialect(_mistral, {"num_key_value_heads": 8, "sliding_window": 4096}),
    "Qwen2ForCausalLM": Dialect(_qwen2, {"num_key_value_heads": 32} | QWEN_WINDOWS),
    "Qwen3ForCausalLM": Dialect(
        _qwen3, {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False} | QWEN_WINDOWS
    ),
}
