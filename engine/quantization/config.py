"""Which quantization an engine is asked for, and which one a checkpoint has.

Knows the option's spelling and the keys of `quantization_config` that quantizers write. Does not know tensors.

Invariant: what these values say this engine can load and run; anything else has been refused by name.

Which layers of a checkpoint are plain (`modules_to_not_convert`, `ignore`, `ignored_layers`, a router nobody lists) is
read off its tensors' names and not from here: the lists that quantizers write leave layers out that are plain.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError, UnsupportedModel

FLOAT8_GRAINS = ("channel", "tensor", "block")
SCHEMES = ("int8", "int8_dynamic", "fp8", "int4")
DEFAULT_GROUP = 64
MXFP4 = "mxfp4"
SPELLINGS = "int8, int8_dynamic, fp8, fp8:tensor, fp8:channel, fp8:block, int4, int4:GROUP"
Raw = dict[str, Any]


@dataclass(slots=True, frozen=True)
class LoadScheme:
    """What plain weights become as they are loaded.

    Attributes:
        name: one of `SCHEMES`. `int8` keeps inputs as they are; `int8_dynamic` rounds each row of them to int8.
        grain: for fp8, what has a scale of its own: a `channel` (an output), a `tensor` or a `block` of 128 x 128.
        group: for int4, the most channels that share a scale.
    """

    name: str
    grain: str = "channel"
    group: int = DEFAULT_GROUP

    @property
    def quantizes_head(self) -> bool:
        """Whether the output matrix is quantized too; the coarser formats leave it plain."""
        return self.name in {"int8", "int8_dynamic"}

    @classmethod
    def parse(cls, text: str) -> "LoadScheme":
        """Read the engine option `quantization`.

        Raises:
            ModelError: it is none of `SPELLINGS`.
        """
        name, _, detail = text.partition(":")
        if name == "fp8" and (not detail or detail in FLOAT8_GRAINS):
            return cls(name, grain=detail or "channel")
        if name == "int4" and (not detail or (detail.isdecimal() and int(detail) >= 2 and int(detail) % 2 == 0)):
            return cls(name, group=int(detail or DEFAULT_GROUP))
        if name in {"int8", "int8_dynamic"} and not detail:
            return cls(name)
        raise ModelError(f"quantization must be one of {SPELLINGS} with an even GROUP, got {text!r}")


@dataclass(slots=True, frozen=True)
class WeightFormat:
    """How a checkpoint stores one quantized weight.

    Attributes:
        layout: `awq`, `gptq`, `packed`, `int` or `float`; each has a file of its own here.
        bits: bits of a value.
        group: channels that share a scale; 0 where a row has one scale.
        has_zeros: whether there are zero points beside the scales.
        block: outputs and channels that share a scale of a `float` weight; None for a scale a tensor or an output.
        zero_offset: what to add to stored zero points; GPTQ's first format stores them less one.
        quantizes_inputs: whether inputs are to be rounded as well.
    """

    layout: str
    bits: int = 8
    group: int = 0
    has_zeros: bool = False
    block: tuple[int, int] | None = None
    zero_offset: int = 0
    quantizes_inputs: bool = False

    @property
    def multiplies_integers(self) -> bool:
        """Whether weights and inputs are both 8-bit integers: the one format that a CPU keeps as it is."""
        return self.layout == "int" and self.quantizes_inputs


@dataclass(slots=True, frozen=True)
class CheckpointQuantization:
    """How a checkpoint is quantized: formats, each with the names that it holds for; the first that fits counts."""

    method: str
    formats: tuple[tuple[re.Pattern[str], WeightFormat], ...]

    def format_of(self, module: str) -> WeightFormat | None:
        """Return the format of the linear module of that name, None where no format is meant for it."""
        return next((found for pattern, found in self.formats if pattern.fullmatch(module)), None)


def read_checkpoint_quantization(raw: Raw) -> CheckpointQuantization | None:
    """Read `quantization_config` of a checkpoint's config.json; None for a plain checkpoint.

    Raises:
        UnsupportedModel: a method or an option that this engine does not load.
        ModelError: a key is missing or holds a value that cannot be used.
    """
    given = raw.get("quantization_config", raw.get("compression_config"))
    if given is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else None
    if method not in METHODS:
        raise UnsupportedModel(f"checkpoints quantized by {method!r} are not loaded; this engine has {sorted(METHODS)}")
    try:
        return CheckpointQuantization(method, METHODS[method](given))
    except KeyError as missing:
        raise ModelError(f"quantization_config of {method} lacks the key {missing}") from None
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise ModelError(f"quantization_config of {method} holds a value that cannot be used: {error}") from None


EVERYTHING = re.compile(".*")
Formats = tuple[tuple[re.Pattern[str], WeightFormat], ...]


def _awq(given: Raw) -> Formats:
    layout = given.get("version") or given.get("checkpoint_format") or given.get("format") or "gemm"
    _need("awq", "version", str(layout).lower(), ("gemm",))
    _need("awq", "bits", given.get("bits", given.get("w_bit")), (4,))
    group = given.get("group_size", given.get("q_group_size"))
    return ((EVERYTHING, WeightFormat("awq", 4, _group(group), has_zeros=given.get("zero_point", True))),)


def _gptq(given: Raw) -> Formats:
    version = given.get("checkpoint_format") or "gptq"
    _need("gptq", "checkpoint_format", version, ("gptq", "gptq_v2"))
    _need("gptq", "bits", given["bits"], (4, 8))
    changed = [rule for rule in given.get("dynamic") or {} if not rule.startswith("-:")]
    if changed:
        raise UnsupportedModel(f"gptq with other options for some layers ({changed[0]!r}) is not loaded")
    offset = 1 if version == "gptq" else 0
    found = WeightFormat("gptq", given["bits"], _group(given["group_size"]), has_zeros=True, zero_offset=offset)
    return ((EVERYTHING, found),)


def _fp8(given: Raw) -> Formats:
    _need("fp8", "fmt", given.get("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    size = given.get("weight_block_size")
    block = None if size is None else (int(size[0]), int(size[1]))
    if block is not None and min(block) < 1:
        raise ValueError(f"weight_block_size {size}")
    return ((EVERYTHING, WeightFormat("float", block=block, quantizes_inputs=True)),)


def _mxfp4(_: Raw) -> Formats:
    return ()  # its stacks of experts are told by their tensors' names, and linear modules are plain


def _compressed_tensors(given: Raw) -> Formats:
    if (given.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise UnsupportedModel("compressed-tensors with sparse weights is not loaded")
    pairs = [
        (target, _compressed_group(group.get("format") or given.get("format"), group))
        for group in given["config_groups"].values()
        for target in group.get("targets", ["Linear"])
    ]
    by_name = [(_pattern(target), found) for target, found in pairs if target != "Linear"]
    return (*by_name, *((EVERYTHING, found) for target, found in pairs if target == "Linear"))


def _pattern(target: str) -> re.Pattern[str]:
    if target.startswith("re:"):
        return re.compile(f"(?:{target[3:]}).*")
    return re.compile(f"(?:.*\\.)?{re.escape(target)}")


def _compressed_group(layout: str | None, group: Raw) -> WeightFormat:
    weights, inputs = group["weights"], group.get("input_activations")
    kind, bits, strategy = weights.get("type", "int"), weights["num_bits"], weights.get("strategy") or "tensor"
    has_zeros, has_groups = not weights.get("symmetric", True), strategy == "group"
    size = _group(weights["group_size"]) if has_groups else 0
    _need("compressed-tensors", "format", layout, tuple(COMPRESSED))
    wanted_kind, wanted_bits, strategies = COMPRESSED[str(layout)]
    _need(f"compressed-tensors {layout}", "type", kind, (wanted_kind,))
    _need(f"compressed-tensors {layout}", "num_bits", bits, wanted_bits)
    _need(f"compressed-tensors {layout}", "strategy", strategy, strategies)
    if layout == "pack-quantized":
        _need("compressed-tensors pack-quantized", "input_activations", inputs, (None,))
        return WeightFormat("packed", bits, size, has_zeros=has_zeros)
    _need(f"compressed-tensors {layout}", "symmetric", not has_zeros, (True,))
    if layout == "int-quantized":
        return WeightFormat("int", bits, quantizes_inputs=inputs is not None)
    block = tuple(int(n) for n in weights["block_structure"]) if strategy == "block" else None
    return WeightFormat("float", bits, block=block, quantizes_inputs=inputs is not None)  # pyright: ignore[reportArgumentType]


COMPRESSED: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "pack-quantized": ("int", (4, 8), ("group", "channel")),
    "int-quantized": ("int", (8,), ("channel", "tensor")),
    "float-quantized": ("float", (8,), ("channel", "tensor", "block")),
    "naive-quantized": ("float", (8,), ("channel", "tensor", "block")),
}
METHODS: dict[str, Callable[[Raw], Formats]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    MXFP4: _mxfp4,
}


def _group(size: Any) -> int:
    """Return the group size, 0 for whole rows."""
    if size == -1:
        return 0
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"group_size {size!r}")
    return size


def _need(method: str, key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        has = ", ".join(map(str, allowed))
        raise UnsupportedModel(f"{method} with {key} {value!r} is not loaded; this engine has {key}: {has}")
