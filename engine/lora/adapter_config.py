"""A PEFT adapter's `adapter_config.json` as one checked value.

Knows names, types and which options change what an adapter computes. Does not know tensors, files of weights or models.

Invariant: an `AdapterConfig` that exists is a plain LoRA (arXiv 2106.09685), scaled by alpha / r or, rank-stabilized
(arXiv 2312.03732), by alpha / sqrt(r); any other option that has been set has been refused by name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, UnsupportedModel

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"
USED = frozenset({
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern"),
    *("alpha_pattern", "layers_to_transform", "layers_pattern", "bias", "init_lora_weights"),
})  # fmt: skip
WITHOUT_EFFECT = frozenset({  # on the outputs of a trained adapter
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("runtime_config", "qalora_group_size"),
})  # fmt: skip
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # others change the base model's weights
UNSET = (None, False, "", [], {})


@dataclass(slots=True, frozen=True)
class AdapterConfig:
    """Which modules an adapter changes, and how much.

    Attributes:
        rank: r of modules that `ranks` does not name.
        alpha: likewise.
        targets: names of modules or their last parts; a pattern for whole names; or `ALL_LINEAR`.
        excluded: the same, for modules that are left out.
        ranks: r by patterns of the last parts of names; the first that fits counts. `alphas` likewise.
        layers: indices of the layers that are changed; None is all.
    """

    rank: int
    alpha: float
    is_rank_stabilized: bool
    targets: tuple[str, ...] | str
    excluded: tuple[str, ...] | str
    ranks: dict[str, int]
    alphas: dict[str, float]
    layers: frozenset[int] | None

    @classmethod
    def from_dir(cls, path: Path) -> "AdapterConfig":
        """Read the configuration of the adapter in `path`.

        Raises:
            ModelError: no such file, or a value of the wrong type.
            UnsupportedModel: an option that this engine does not implement.
        """
        raw = _read(path / CONFIG_FILE)
        _check_options(raw, path)
        layers = raw.get("layers_to_transform")
        try:
            config = cls(
                rank=int(raw["r"]),
                alpha=float(raw["lora_alpha"]),
                is_rank_stabilized=bool(raw.get("use_rslora", False)),
                targets=_names(raw["target_modules"]),
                excluded=_names(raw.get("exclude_modules") or []),
                ranks={name: int(rank) for name, rank in (raw.get("rank_pattern") or {}).items()},
                alphas={name: float(alpha) for name, alpha in (raw.get("alpha_pattern") or {}).items()},
                layers=None if layers is None else frozenset([layers] if isinstance(layers, int) else layers),
            )
            config.check_patterns()
        except KeyError as missing:
            raise ModelError(f"{path / CONFIG_FILE} lacks the key {missing}") from None
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise ModelError(f"{path / CONFIG_FILE} holds a value that cannot be used: {error}") from None
        return config

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        return max([self.rank, *self.ranks.values()])

    def rank_of(self, module: str) -> int:
        """Return the rank of the module of that whole name."""
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor on the module's update."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return alpha / (rank**0.5 if self.is_rank_stabilized else rank)

    def names(self, module: str, layer: int | None) -> bool:
        """Whether `targets` surely name the module in the layer of that index, if any; unknown of `ALL_LINEAR`."""
        if self.targets == ALL_LINEAR or _fits(self.excluded, module):
            return False
        return _fits(self.targets, module) and (self.layers is None or layer in self.layers)

    def check_patterns(self) -> None:
        """Refuse ranks below 1 and patterns that are none.

        Raises:
            ValueError: a rank is below 1.
            re.error: a pattern cannot be compiled.
        """
        if min([self.rank, *self.ranks.values()]) < 1:
            raise ValueError(f"a rank must be at least 1, got {min([self.rank, *self.ranks.values()])}")
        for pattern in (*self.ranks, *self.alphas, *(p for p in (self.targets, self.excluded) if isinstance(p, str))):
            re.compile(pattern)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def _check_options(raw: Mapping[str, Any], path: Path) -> None:
    def refuse(name: str) -> None:
        raise UnsupportedModel(f"{path} sets {name} to {raw.get(name)!r}; this engine serves plain LoRA without it")

    if raw.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{path} has the peft_type {raw.get('peft_type')!r}; this engine serves LORA")
    if raw.get("bias", "none") != "none":
        refuse("bias")
    if not any(
        raw.get("init_lora_weights") is start or raw.get("init_lora_weights") == start for start in PLAIN_STARTS
    ):
        refuse("init_lora_weights")
    for name in sorted(raw.keys() - USED - WITHOUT_EFFECT):
        if raw[name] not in UNSET:
            refuse(name)


def _names(value: object) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"names of modules must be a string or a list of strings, got {value!r}")
    return tuple(value)


def _fits(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((v for pattern, v in values.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
