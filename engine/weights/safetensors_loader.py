"""Copying a checkpoint's tensors into a model's parameters, one tensor at a time.

Knows safetensors files, their index and a mapping from tensor names to parameter views. Does not know architectures.

Invariant: when `load_weights` returns, every view has been filled exactly once and every tensor of the checkpoint used.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelError, WeightMismatch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_weights(path: Path, views: Mapping[str, torch.Tensor], is_redundant: Callable[[str], bool]) -> None:
    """Fill `views` from the safetensors files in `path`, converting to each view's dtype.

    Args:
        path: the checkpoint's folder.
        views: destination of each tensor, by the checkpoint's name.
        is_redundant: whether a tensor without a view, by its name, may be passed over.

    Raises:
        ModelError: there are no safetensors files, or one cannot be read.
        WeightMismatch: a tensor is missing, unexpected or of the wrong shape.
    """
    loaded: set[str] = set()
    for name, tensor in _tensors(path):
        view = views.get(name)
        if view is None and is_redundant(name):
            continue
        if view is None:
            raise WeightMismatch(f"{path}: unexpected tensor {name!r} of shape {list(tensor.shape)}")
        if view.shape != tensor.shape:
            raise WeightMismatch(f"{path}: {name!r} has shape {list(tensor.shape)}, expected {list(view.shape)}")
        view.copy_(tensor)
        loaded.add(name)
    missing = sorted(views.keys() - loaded)
    if missing:
        raise WeightMismatch(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]!r}")


def checkpoint_files(path: Path) -> list[Path]:
    """Return the safetensors files of the checkpoint: the single one, else those of its index, else all there are.

    Raises:
        ModelError: there are none, the index cannot be read, or it names one that is not there.
    """
    index = path / INDEX_FILE
    if (path / SINGLE_FILE).is_file():
        files = [path / SINGLE_FILE]
    elif index.is_file():
        files = _indexed_files(index)
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no safetensors files")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{index} names {file.name}, which does not exist")
    return files


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is no index of weights") from None


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in checkpoint_files(path):
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - not a mapping
                    yield name, reader.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{file} cannot be read as safetensors: {error}") from None
