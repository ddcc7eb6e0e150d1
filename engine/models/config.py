"""A checkpoint's `config.json` and `generation_config.json` as one checked value.

Knows names of Hugging Face configuration keys, old and new. Does not know tensors or files of weights.

Invariant: what a `ModelConfig` holds this engine can run; anything else has been refused by name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ModelError, UnsupportedModel

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_OPTIONS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    "max_position_embeddings",
)


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta` and how frequencies are stretched for long contexts (`kind`, `options`)."""

    theta: float = 10000.0
    kind: str = "default"
    options: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class ModelConfig:
    """Sizes of one model; see the shape letters in docs/architecture.md."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_dir(cls, path: Path) -> "ModelConfig":
        """Read the configuration of the checkpoint in `path`.

        Raises:
            ModelError: no such file, or not a JSON object with the keys this engine needs.
            UnsupportedModel: an architecture or an option this engine does not implement.
        """
        raw = _read_json(path / "config.json")
        generation = _read_json(path / "generation_config.json", optional=True)
        _check_supported(raw, path)
        try:
            config = _build(raw, generation)
        except KeyError as missing:
            raise ModelError(f"{path / 'config.json'} lacks the key {missing}") from None
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ModelError(f"{path / 'config.json'} holds a value that cannot be used: {error}") from None
        _check_sizes(config, path)
        return config

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps in fp32."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 4


def _build(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    num_heads = raw["num_attention_heads"]
    return ModelConfig(
        architecture=raw["architectures"][0],
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=_rope(raw),
        max_position_embeddings=raw["max_position_embeddings"],
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        eos_token_ids=tuple(i for i in _eos_token_ids(generation, raw) if 0 <= i < raw["vocab_size"]),
    )


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if optional:
            return {}
        raise ModelError(f"{path} does not exist; a model folder needs config.json, tokenizer.json and safetensors")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def _check_supported(raw: dict[str, Any], path: Path) -> None:
    listed = raw.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else f"model of architectures {listed!r}"
    if named not in ARCHITECTURES:
        raise UnsupportedModel(f"{path} is a {named}; this engine serves: {', '.join(ARCHITECTURES)}")
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"{path} uses the activation {activation!r}; this engine has: silu")
    if "quantization_config" in raw:
        raise UnsupportedModel(f"{path} is quantized; this engine loads fp32, fp16 and bf16 weights")


def _check_sizes(config: ModelConfig, path: Path) -> None:
    for name in SIZES:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{path / 'config.json'} gives {value!r} for {name}; it must be an integer of at least 1")


def _rope(raw: dict[str, Any]) -> RopeConfig:
    options = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = options.pop("rope_type", options.pop("type", "default"))
    options.pop("type", None)
    if kind not in ROPE_OPTIONS:
        raise UnsupportedModel(
            f"rope_scaling of type {kind!r} is not implemented; this engine has: {', '.join(ROPE_OPTIONS)}"
        )
    missing = sorted(ROPE_OPTIONS[kind] - options.keys())
    if missing:
        raise KeyError(f"{missing[0]} of rope_scaling")
    theta = options.pop("rope_theta", raw.get("rope_theta", 10000.0))
    return RopeConfig(theta=float(theta), kind=kind, options=options)


def _eos_token_ids(generation: dict[str, Any], raw: dict[str, Any]) -> tuple[int, ...]:
    value = generation.get("eos_token_id", raw.get("eos_token_id"))
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
