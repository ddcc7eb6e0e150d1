"""Rotary embedding's settings as checkpoints spell them, old (`rope_scaling`) and new (`rope_parameters`).

Knows names of keys and which of them each kind needs. Does not know angles or tensors.
"""

from dataclasses import dataclass, field
from typing import Any

from engine.errors import ModelError, UnsupportedModel

NEEDED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "longrope": {"short_factor", "long_factor", "original_max_position_embeddings"},
}
OPTIONAL = {
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"attention_factor", "factor"},
}
WITHOUT_EFFECT = {"finetuned", "original_max_position_embeddings"}
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Rotary embedding of one kind of layer.

    Attributes:
        theta: base of the frequencies.
        kind: how frequencies are stretched for long contexts, a key of `NEEDED`.
        options: what that kind is given.
        partial: share of a head's channels that turn, the first ones.
    """

    theta: float = 10000.0
    kind: str = "default"
    options: dict[str, Any] = field(default_factory=dict)
    partial: float = 1.0


def read_ropes(raw: dict[str, Any], aliases: dict[str, str]) -> tuple[RopeConfig, RopeConfig | None]:
    """Return the rope of layers that attend to everything, and that of windowed layers where it differs.

    Args:
        raw: the checkpoint's configuration; `rope_local_base_freq` or entries by layer type tell ropes apart.
        aliases: names of kinds that this family spells differently.

    Raises:
        UnsupportedModel: a kind or an option this engine does not implement.
        ModelError: a kind lacks an option that it needs.
    """
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    nested = {name: dict(given[name] or {}) for name in LAYER_TYPES if name in given}
    local = nested.get("sliding_attention")
    if local is None and raw.get("rope_local_base_freq") is not None:
        local = {}
    rope = _read(raw, nested.get("full_attention", {}) if nested else given, raw.get("rope_theta"), aliases)
    if local is None:
        return rope, None
    return rope, _read(raw, local, raw.get("rope_local_base_freq"), aliases)


def _read(raw: dict[str, Any], given: dict[str, Any], theta: float | None, aliases: dict[str, str]) -> RopeConfig:
    options = {key: value for key, value in given.items() if value is not None}
    older_name = options.pop("type", "default")
    kind = options.pop("rope_type", older_name)
    kind = aliases.get(kind, kind)
    if kind not in NEEDED:
        raise UnsupportedModel(
            f"rope_scaling of type {kind!r} is not implemented; this engine has: {', '.join(NEEDED)}"
        )
    base = options.pop("rope_theta", 10000.0 if theta is None else theta)
    partial = options.pop("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    _complete(raw, kind, options)
    _check_options(kind, options)
    return RopeConfig(theta=float(base), kind=kind, options=options, partial=float(partial))


def _complete(raw: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
    """Derive the lengths that files may leave out from those of the model, as transformers does."""
    if "original_max_position_embeddings" in NEEDED[kind]:
        outer = raw.get("original_max_position_embeddings")
        original = outer or options.get("original_max_position_embeddings") or raw["max_position_embeddings"]
        options["original_max_position_embeddings"] = original
        if kind in OPTIONAL:
            options.setdefault("factor", raw["max_position_embeddings"] / original)


def _check_options(kind: str, options: dict[str, Any]) -> None:
    missing = sorted(NEEDED[kind] - options.keys())
    if missing:
        raise ModelError(f"config.json lacks the key '{missing[0]} of rope_scaling'")
    unknown = sorted(options.keys() - NEEDED[kind] - OPTIONAL.get(kind, set()) - WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedModel(f"the option {unknown[0]!r} of rope_scaling type {kind!r} is not implemented")
