"""Copying a checkpoint's tensors into a model's parameters, piece by piece.

Knows a checkpoint's files, their index and a mapping from tensor names to parameter views. Does not know architectures.

Invariant: when `load_weights` returns, every view has been filled exactly once and every tensor of the checkpoint used.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from engine.errors import ModelError, WeightMismatch
from engine.layers.checkpoint import Pieces, View, as_pieces
from engine.weights.safetensors_file import RAW_DTYPES, TensorEntry, read_entries, read_rows

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(slots=True, frozen=True)
class StoredTensor:
    """A tensor in a file that is open."""

    file: BinaryIO
    entry: TensorEntry

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    def read(self, box: Sequence[range] | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield it, or a box of it, in pieces; see `safetensors_file.read_rows`."""
        return read_rows(self.file, self.entry, box, RAW_DTYPES)


class Sink(Protocol):
    """Takes a tensor that becomes something else than a copy of itself."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types that the tensor may have, as safetensors spells them."""
        ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes that it may have."""
        ...

    def take(self, tensor: StoredTensor) -> None:
        """Read the tensor, or what is wanted of it.

        Raises:
            WeightMismatch: the values are none that the sink can use.
        """
        ...


Target = View | Sink


def read_all_entries(path: Path) -> dict[str, TensorEntry]:
    """Return the checkpoint's tensors by name.

    Raises:
        ModelError: there are no safetensors files, or one cannot be read.
    """
    return {entry.name: entry for file in checkpoint_files(path) for entry in read_entries(file)}


def load_weights(path: Path, views: Mapping[str, Target], is_redundant: Callable[[str], bool]) -> None:
    """Fill `views` from the safetensors files in `path`, converting to each view's dtype.

    Args:
        path: the checkpoint's folder.
        views: destination of each tensor, by the checkpoint's name.
        is_redundant: whether a tensor without a view, by its name, may be passed over.

    Raises:
        ModelError: there are no safetensors files, or one cannot be read.
        WeightMismatch: a tensor is missing, unexpected, there twice or of the wrong shape.
    """
    loaded: set[str] = set()
    for file in checkpoint_files(path):
        entries = [entry for entry in read_entries(file) if entry.name in views or not is_redundant(entry.name)]
        for entry in entries:
            _check(path, entry, views.get(entry.name), is_known=entry.name in loaded)
            loaded.add(entry.name)
        _fill(file, entries, views)
    missing = sorted(views.keys() - loaded)
    if missing:
        raise WeightMismatch(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]!r}")


def _check(path: Path, entry: TensorEntry, view: Target | None, *, is_known: bool) -> None:
    if view is None:
        raise WeightMismatch(f"{path}: unexpected tensor {entry.name!r} of shape {list(entry.shape)}")
    if is_known:
        raise WeightMismatch(f"{path}: {entry.name!r} stands in two files")
    if isinstance(view, list | torch.Tensor | Pieces):
        shapes = (as_pieces(view).shape,)
    else:
        shapes = view.shapes
        if entry.dtype not in view.dtypes:
            allowed = " or ".join(view.dtypes)
            raise WeightMismatch(f"{path}: {entry.name!r} has the type {entry.dtype}, expected {allowed}")
    if entry.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise WeightMismatch(f"{path}: {entry.name!r} has shape {list(entry.shape)}, expected {expected}")


def _fill(file: Path, entries: list[TensorEntry], views: Mapping[str, Target]) -> None:
    with file.open("rb") as reader:
        for entry in entries:
            target = views[entry.name]
            if not isinstance(target, list | torch.Tensor | Pieces):
                target.take(StoredTensor(reader, entry))
                continue
            for piece in as_pieces(target).pieces:
                for row, part in read_rows(reader, entry, piece.box):
                    piece.into[row : row + len(part)].copy_(part)


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
