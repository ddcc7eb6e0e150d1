"""Writing a quantized checkpoint: the rounded layers in place of the plain ones, everything else as it was.

Knows which layers are rounded and the order of the work. Does not know bits or what the result is good for.

The model is held once in fp32; beside it a file of the checkpoint, a layer's moments and what has been rounded.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import UnsupportedModel
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.registry import lay_out
from engine.placement import DTYPES
from engine.quantization.loading import STAY_PLAIN
from engine.quantization.slots import Part, find_parts
from engine.weights.safetensors_loader import INDEX_FILE, SINGLE_FILE, checkpoint_files, load_weights
from scripts.quantization.calibration import LayerWalk
from scripts.quantization.compressed import Format
from scripts.quantization.rounding import Rounded, round_groups, round_outputs

CPU = torch.device("cpu")
CONFIG_FILE = "config.json"


@dataclass(slots=True)
class RoundedModel:
    """What goes into the checkpoint.

    Attributes:
        tensors: of rounded modules, by their whole names.
        groups: the names of modules by the size of their groups, 0 for a scale an output.
        plain: the names of linear modules that stay as they are.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    groups: dict[int, list[str]] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)


class ModelRounder:
    """Rounds a model layer by layer; each layer is calibrated on what the rounded ones before it say."""

    def __init__(self, path: Path, form: Format, group: int) -> None:
        """Load the plain checkpoint; `group` is the most inputs of a 4-bit weight that share a scale.

        Raises:
            UnsupportedModel: it is quantized already, or stacks its experts in one tensor.
        """
        self.config = ModelConfig.from_dir(path)
        if self.config.quantization is not None:
            raise UnsupportedModel(f"{path} is quantized already")
        self._form, self._group = form, group
        self._scale_dtype = DTYPES.get(self.config.dtype, torch.float32)
        self.model = self._load(path)

    def round(self, sequences: list[list[int]], advance: Callable[[], object]) -> RoundedModel:
        """Round all layers, calibrated on these sequences; `advance` is called after each."""
        done = RoundedModel(plain=[part.name for path in self._parts for part in self._parts[path] if _stays(path)])
        for index, moments in LayerWalk(self.model, self.config, sequences).layers():
            for path, parts in self._parts.items():
                if path.startswith(f"layers.{index}.") and not _stays(path):
                    self._round_linear(path, parts, moments.get(path), done)
            advance()
        return done

    def _load(self, path: Path) -> Decoder:
        model = lay_out(self.config, CPU, torch.float32)
        self._parts = find_parts(model, model.weight_views())
        if any(part.expert is not None for parts in self._parts.values() for part in parts):
            raise UnsupportedModel(f"{path} stacks its experts in one tensor, which the format cannot say")
        model.materialize(CPU, self.config.max_position_embeddings).eval()
        load_weights(path, model.weight_views(), model.is_redundant)
        return model

    def _round_linear(self, path: str, parts: list[Part], moments: torch.Tensor | None, done: RoundedModel) -> None:
        linear = self.model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        group = power_of_two_group(linear.in_features, self._group) if self._form.bits == 4 else 0
        if group is None:
            done.plain += [part.name for part in parts]
            return
        rounded = self._round(linear.weight.detach(), group, moments)
        linear.weight.copy_(rounded.meaning())
        for part in parts:
            rows = slice(part.start, part.start + len(part.cut.outputs))
            stored = self._form.tensors(Rounded(rounded.values[rows], rounded.scales[rows]))
            done.tensors |= {f"{part.name}.{name}": tensor.contiguous() for name, tensor in stored.items()}
            done.groups.setdefault(group, []).append(part.name)

    def _round(self, weight: torch.Tensor, group: int, moments: torch.Tensor | None) -> Rounded:
        if not group:
            return round_outputs(weight, self._form.stored, self._scale_dtype)
        unseen = torch.zeros(weight.shape[1], weight.shape[1])  # an expert that no token was sent to
        return round_groups(weight, group, unseen if moments is None else moments, self._scale_dtype)


def _stays(path: str) -> bool:
    return path == "lm_head" or path.endswith(STAY_PLAIN)


def power_of_two_group(num_inputs: int, most: int) -> int | None:
    """Return the largest power of two that divides the inputs and is at most `most`; None below 8."""
    size = num_inputs & -num_inputs
    while size > most:
        size //= 2
    return size if size >= 8 else None


def write_checkpoint(source: Path, target: Path, rounded: RoundedModel, quantization: dict[str, Any]) -> None:
    """Copy the checkpoint with the rounded tensors in the place of plain ones, file by file."""
    target.mkdir(parents=True)
    files = checkpoint_files(source)
    weight_map: dict[str, str] = {}
    for file in files:
        tensors = _replaced(load_file(file), rounded)
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if files[0].name != SINGLE_FILE:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in {INDEX_FILE, CONFIG_FILE}:
            shutil.copyfile(path, target / path.name)
    values = json.loads((source / CONFIG_FILE).read_text("utf-8"))
    text = json.dumps(values | {"quantization_config": quantization}, indent=2, ensure_ascii=False)
    (target / CONFIG_FILE).write_text(text + "\n", "utf-8")


def _replaced(tensors: dict[str, torch.Tensor], rounded: RoundedModel) -> dict[str, torch.Tensor]:
    modules = {name for names in rounded.groups.values() for name in names}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if name == module or module not in modules:
            result[name] = tensor
            continue
        for kind in ("weight", "weight_packed", "weight_scale", "weight_shape"):
            if f"{module}.{kind}" in rounded.tensors:
                result[f"{module}.{kind}"] = rounded.tensors[f"{module}.{kind}"]
    return result
