"""A checkpoint's `config.json` and `generation_config.json` as one checked value.

Knows sizes and options that all families share. Does not know how a family spells them (`dialects`, `rope_config`),
tensors or files of weights.

Invariant: what a `ModelConfig` holds this engine can run; anything else has been refused by name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, UnsupportedModel
from engine.models.dialects import DIALECTS, Dialect
from engine.models.moe_config import MoEConfig
from engine.models.rope_config import RopeConfig, read_ropes
from engine.quantization.config import CheckpointQuantization, read_checkpoint_quantization

ARCHITECTURES = tuple(DIALECTS)
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    "max_position_embeddings",
)


@dataclass(slots=True, frozen=True)
class ModelConfig:
    """Sizes and options of one model; see the shape letters in docs/architecture.md.

    Attributes:
        rope: rotary embedding of the layers that attend to everything, and of the others unless `local_rope` is set.
        local_rope: rotary embedding of windowed layers, None where it is the same.
        windows: for each layer how many tokens one attends to, itself included; None means all before it.
        attention_scale: factor on the attention scores.
        attention_soft_cap: scores are bent into this range by tanh, None where they are not.
        logits_soft_cap: the same for logits.
        moe: the experts, None for a dense model.
        quantization: how the checkpoint's weights are stored, None where they are plain.
        dtype: the type the checkpoint says it is in; transformers' default where it says nothing.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    activation: str
    rope: RopeConfig
    local_rope: RopeConfig | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    attention_scale: float
    attention_soft_cap: float | None
    logits_soft_cap: float | None
    moe: MoEConfig | None
    dtype: str
    eos_token_ids: tuple[int, ...]
    quantization: CheckpointQuantization | None

    @classmethod
    def from_dir(cls, path: Path) -> "ModelConfig":
        """Read the configuration of the checkpoint in `path`.

        Raises:
            ModelError: no such file, or not a JSON object with the keys this engine needs.
            UnsupportedModel: an architecture or an option this engine does not implement.
        """
        raw = _flat(_read_json(path / "config.json"))
        generation = _read_json(path / "generation_config.json", optional=True)
        architecture = _architecture(raw, path)
        quantization = read_checkpoint_quantization(raw)
        try:
            config = _build(architecture, raw, generation, quantization)
        except KeyError as missing:
            raise ModelError(f"{path / 'config.json'} lacks the key {missing}") from None
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ModelError(f"{path / 'config.json'} holds a value that cannot be used: {error}") from None
        _check_sizes(config, path)
        _check_options(config, path)
        return config

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that keys and values of one token are."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def max_sequence_length(self) -> int:
        """Tokens of the longest sequence: `max_position_embeddings`, or more where the rope is stretched for that."""
        return self.rope.longest(self.max_position_embeddings)

    @property
    def sliding_window(self) -> int | None:
        """How many of a sequence's last tokens any later layer may still read; None where some layer reads all."""
        widths = [width for width in self.windows if width is not None]
        return max(widths) if len(widths) == self.num_layers else None


def _build(
    architecture: str, file: dict[str, Any], generation: dict[str, Any], quantization: CheckpointQuantization | None
) -> ModelConfig:
    dialect = DIALECTS[architecture]
    raw = dialect.translate(dialect.defaults | file)
    num_heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    rope, local_rope = _ropes(raw, dialect)
    return ModelConfig(
        architecture=architecture,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=raw["activation"],
        rope=rope,
        local_rope=local_rope,
        max_position_embeddings=raw["max_position_embeddings"],
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        qkv_bias=raw["qkv_bias"],
        output_bias=raw["output_bias"],
        mlp_bias=raw["mlp_bias"],
        windows=raw["windows"],
        attention_scale=raw.get("query_pre_attn_scalar", head_dim) ** -0.5,
        attention_soft_cap=raw.get("attn_logit_softcapping"),
        logits_soft_cap=raw.get("final_logit_softcapping"),
        moe=raw["moe"],
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=tuple(i for i in _eos_token_ids(generation, raw) if 0 <= i < raw["vocab_size"]),
        quantization=quantization,
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


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with that of the text model, where it is nested, in its place."""
    nested = raw.get("text_config")
    if not isinstance(nested, dict):
        return raw
    architectures = raw.get("architectures") or nested.get("architectures")
    return {**raw, **nested, "architectures": architectures}


def _architecture(raw: dict[str, Any], path: Path) -> str:
    listed = raw.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else f"model of architectures {listed!r}"
    if named not in ARCHITECTURES:
        raise UnsupportedModel(f"{path} is a {named}; this engine serves: {', '.join(ARCHITECTURES)}")
    return named


def _check_sizes(config: ModelConfig, path: Path) -> None:
    for name in SIZES:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{path / 'config.json'} gives {value!r} for {name}; it must be an integer of at least 1")
    moe = config.moe
    if moe is not None and not 1 <= moe.num_experts_per_token <= moe.num_experts:
        raise ModelError(f"{path} sends each token to {moe.num_experts_per_token} of {moe.num_experts} experts")
    for width in config.windows:
        if width is not None and (not isinstance(width, int) or width < 1):
            raise ModelError(f"{path / 'config.json'} gives the window {width!r}; it must be an integer of at least 1")
    if config.num_heads % config.num_kv_heads:
        raise ModelError(f"{path} has {config.num_heads} query heads for {config.num_kv_heads} key/value heads")
    if int(config.head_dim * config.rope.partial) % 2:
        raise ModelError(f"{path} turns {config.head_dim} x {config.rope.partial} channels; rope needs an even number")


def _check_options(config: ModelConfig, path: Path) -> None:
    if config.activation not in ACTIVATIONS:
        has = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"{path} uses the activation {config.activation!r}; this engine has: {has}")


def _ropes(raw: dict[str, Any], dialect: Dialect) -> tuple[RopeConfig, RopeConfig | None]:
    rope, local_rope = read_ropes(raw, dialect.rope_aliases)
    if rope.partial != 1.0 and not dialect.has_partial_rope:
        raise UnsupportedModel(f"partial_rotary_factor {rope.partial} is not implemented for this architecture")
    return rope, local_rope


def _eos_token_ids(generation: dict[str, Any], raw: dict[str, Any]) -> tuple[int, ...]:
    value = generation.get("eos_token_id", raw.get("eos_token_id"))
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
