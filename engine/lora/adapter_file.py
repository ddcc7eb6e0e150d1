"""Reading an adapter's weights and laying them out for the model's fused projections.

Knows PEFT's names of tensors and the model's targets. Does not know which adapters are wanted, or when.

Invariant: every tensor of the file is used, and every module that the configuration names has its two tensors; anything
else has been refused by name. Passed over are copies of the base model's embedding and head, which PEFT puts beside an
update of the head; had they been trained, `modules_to_save` would name them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch

from engine.errors import ModelError, UnsupportedModel, WeightMismatch
from engine.lora.adapter_config import CONFIG_FILE, AdapterConfig
from engine.lora.lora_linear import LoadedAdapter
from engine.lora.targets import ModuleName, Target
from engine.models.decoder import HEAD
from engine.placement import ON_HOST, Placement
from engine.weights.safetensors_file import TensorEntry, read_entries, read_rows
from kernels.lora import LowRankUpdate, UpdatePart

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
DEFAULT_PREFIX = "model."
COPY = re.compile(
    rf"{re.escape(PREFIX)}(?:(?:language_model|model)\.)*(?:{HEAD}|embed_tokens)(?:\.base_layer)?\.weight"
)
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
DIGEST_BYTES = 16
FLOAT_BYTES = 4


@dataclass(slots=True, frozen=True)
class Pair:
    """The two tensors of one module."""

    module: str
    target: Target
    down: TensorEntry
    up: TensorEntry


@dataclass(slots=True, frozen=True)
class InspectedAdapter:
    """An adapter whose files fit the model; `num_bytes` is the memory it will take."""

    name: str
    path: Path
    config: AdapterConfig
    pairs: tuple[Pair, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights in fp32."""
        return FLOAT_BYTES * sum(sum(pair.target.shape) * pair.down.shape[0] for pair in self.pairs)


def inspect_adapter(name: str, path: Path, targets: Mapping[str, Target], max_rank: int) -> InspectedAdapter:
    """Check the adapter in `path` against the model without reading its weights.

    Raises:
        ModelError: it cannot be read, or its rank is too large.
        UnsupportedModel: it does what this engine does not implement.
        WeightMismatch: a tensor is missing, unexpected or of the wrong shape.
    """
    config = AdapterConfig.from_dir(path)
    if config.max_rank > max_rank:
        raise ModelError(f"{path} has the rank {config.max_rank}; max_lora_rank is {max_rank}")
    if not (path / WEIGHTS_FILE).is_file():
        raise ModelError(f"{path / WEIGHTS_FILE} does not exist")
    found = read_entries(path / WEIGHTS_FILE)
    entries = {entry.name: entry for entry in found if not _is_copy(path, entry, targets[HEAD])}
    pairs = tuple(
        _pair(path, config, targets, module, entries)
        for module in sorted({_module_of(path, entry_name) for entry_name in entries})
    )
    _check_complete(path, config, targets, {pair.module for pair in pairs})
    return InspectedAdapter(name, path, config, pairs)


def load_adapter(inspected: InspectedAdapter, placement: Placement = ON_HOST) -> LoadedAdapter:
    """Read the weights of an adapter and put what the model has outputs and inputs for where it is.

    Raises:
        ModelError: the file cannot be read, or has a dtype this engine does not load.
    """
    path = inspected.path / WEIGHTS_FILE
    by_linear: dict[str, list[Pair]] = {}
    for pair in inspected.pairs:
        by_linear.setdefault(pair.target.path, []).append(pair)
    updates = {
        name: _load_update(path, inspected.config, pairs).moved(placement.device, placement.dtype)
        for name, pairs in by_linear.items()
    }
    return LoadedAdapter(inspected.name, _digest(inspected.path), inspected.num_bytes, updates)


def _is_copy(path: Path, entry: TensorEntry, head: Target) -> bool:
    if COPY.fullmatch(entry.name) is None:
        return False
    if entry.shape != head.shape:
        raise WeightMismatch(f"{path}: {entry.name!r} has shape {list(entry.shape)}, expected {list(head.shape)}")
    return True


def _module_of(path: Path, name: str) -> str:
    for suffix in (DOWN, UP):
        if name.startswith(PREFIX) and name.endswith(suffix):
            return name.removeprefix(PREFIX).removesuffix(suffix)
    raise UnsupportedModel(f"{path} holds the tensor {name!r}; this engine serves lora_A and lora_B of linear modules")


def _pair(
    path: Path, config: AdapterConfig, targets: Mapping[str, Target], module: str, entries: Mapping[str, TensorEntry]
) -> Pair:
    parsed = ModuleName.parse(module)
    target = None if parsed is None else targets.get(parsed.key)
    if target is None:
        raise UnsupportedModel(
            f"{path} changes {module!r}; here adapters change linear modules of layers, but no experts, and lm_head"
        )
    rank, (num_outputs, num_inputs) = config.rank_of(module), target.shape
    found: list[TensorEntry] = []
    for suffix, shape in ((DOWN, (rank, num_inputs)), (UP, (num_outputs, rank))):
        entry = entries.get(f"{PREFIX}{module}{suffix}")
        if entry is None:
            raise WeightMismatch(f"{path} lacks {PREFIX}{module}{suffix}")
        if entry.shape != shape:
            raise WeightMismatch(f"{path}: {entry.name!r} has shape {list(entry.shape)}, expected {list(shape)}")
        found.append(entry)
    return Pair(module, target, *found)


def _check_complete(path: Path, config: AdapterConfig, targets: Mapping[str, Target], modules: set[str]) -> None:
    """Refuse an adapter without tensors, or without those of a module that its configuration surely names."""
    found = [parsed for module in sorted(modules) if (parsed := ModuleName.parse(module)) is not None]
    if not found:
        raise WeightMismatch(f"{path / WEIGHTS_FILE} holds no tensors")
    prefix = next((parsed.prefix for parsed in found if parsed.layer is not None), DEFAULT_PREFIX)
    keys = {parsed.key for parsed in found}
    for key in (key for key in targets if key not in keys):
        layer = None if key == HEAD else int(key.split(".")[1])
        module = key if key == HEAD else f"{prefix}{key}"
        if config.names(module, layer):
            raise WeightMismatch(f"{path} lacks {PREFIX}{module}{DOWN}, which its target_modules name")


def _load_update(path: Path, config: AdapterConfig, pairs: list[Pair]) -> LowRankUpdate:
    downs: list[torch.Tensor] = []
    parts: list[UpdatePart] = []
    first = 0
    for pair in sorted(pairs, key=lambda pair: pair.target.start):
        inputs = pair.target.inputs or range(pair.target.shape[1])
        downs.append(_read_tensor(path, pair.down)[:, inputs.start : inputs.stop])
        up = _read_tensor(path, pair.up).mul_(config.scale_of(pair.module))
        parts += [UpdatePart(start, first, up[run.start : run.stop]) for start, run in pair.target.runs]
        first += len(downs[-1])
    return LowRankUpdate(torch.cat(downs), tuple(parts))


def _read_tensor(path: Path, entry: TensorEntry) -> torch.Tensor:
    tensor = torch.empty(entry.shape, dtype=torch.float32)
    with path.open("rb") as file:
        for row, piece in read_rows(file, entry):
            tensor[row : row + len(piece)].copy_(piece)
    return tensor


def _digest(path: Path) -> bytes:
    """Return a name for what the adapter computes: that of its two files' bytes."""
    digest = blake2b((path / CONFIG_FILE).read_bytes(), digest_size=DIGEST_BYTES)
    with (path / WEIGHTS_FILE).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()
