"""Rotary embedding's settings as checkpoints spell them, old (`rope_scaling`) and new (`rope_parameters`).

Knows names of keys and which of them each kind needs. Does not know angles or tensors.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ModelError, UnsupportedModel

NEEDED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", "max_position_embeddings"},
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

    def lengths(self, num_positions: int) -> tuple[int, ...]:
        """Return for which longest sequences there are tables of angles, ascending, up to `num_positions` or above."""
        if self.kind == "longrope" and num_positions > self.options["original_max_position_embeddings"]:
            return self.options["original_max_position_embeddings"], num_positions
        if self.kind == "dynamic":
            trained = self.options["max_position_embeddings"]
            num_doublings = max(0, math.ceil(math.log2(num_positions / trained)))
            return tuple(trained << power for power in range(num_doublings + 1))
        return (num_positions,)

    def longest(self, max_position_embeddings: int) -> int:
        """Return the longest sequence that the rope is meant for."""
        match self.kind:
            case "linear" | "dynamic":
                return int(max_position_embeddings * max(1.0, self.options["factor"]))
            case "yarn":
                original = self.options["original_max_position_embeddings"]
                return max(max_position_embeddings, int(original * self.options["factor"]))
        return max_position_embeddings


@dataclass(slots=True, frozen=True)
class RopeTables:
    """Tables of angles, one behind the other, for sequences that may become longer and longer.

    A sequence is turned by the first table that is meant for its longest: chosen once, so that cached keys stay right.

    Attributes:
        lengths: the longest sequences that they are for, ascending.
        num_positions: positions of the last one; the others have no more than their lengths.
    """

    lengths: tuple[int, ...]
    num_positions: int

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows, one a position, of each table."""
        return tuple(min(length, self.num_positions) for length in self.lengths)

    def first_row(self, num_tokens: int) -> int:
        """Return where the table begins for a sequence of which at most `num_tokens` tokens are computed."""
        index = bisect_left(self.lengths, num_tokens)
        return sum(self.num_rows[: min(index, len(self.lengths) - 1)])


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
    if kind == "dynamic":
        options["max_position_embeddings"] = raw["max_position_embeddings"]
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
