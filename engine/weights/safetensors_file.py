"""Reading the tensors of one safetensors file piece by piece.

Knows the file's format. Does not know models. Reads with plain calls into one small buffer instead of mapping the
file, so that a process that loads a model holds the model and no second copy in file pages.

Source of the format: https://huggingface.co/docs/safetensors ("Format"): the header's length in 8 bytes, little-endian;
the header, JSON from tensor names to dtype, shape and offsets; the data.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.errors import ModelError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
RAW_DTYPES = DTYPES | {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
}  # of tensors that are parts of quantized weights
LENGTH_BYTES = 8
PIECE_BYTES = 2 * 2**20


@dataclass(slots=True, frozen=True)
class TensorEntry:
    """Where one tensor lies; `start` counts bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_entries(path: Path) -> list[TensorEntry]:
    """Return the file's tensors in the order of their data.

    Raises:
        ModelError: the file is no safetensors file, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
            raise ModelError(f"{path} cannot be read as safetensors: {size} bytes do not hold the header")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [_entry(name, values, LENGTH_BYTES + length) for name, values in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: its header is malformed ({error})") from None
    for entry in entries:
        if entry.start + entry.num_bytes > size:
            raise ModelError(f"{path} is cut off: {entry.name!r} ends past its {size} bytes")
    return sorted(entries, key=lambda entry: entry.start)


def read_rows(
    file: BinaryIO,
    entry: TensorEntry,
    box: Sequence[range] | None = None,
    dtypes: Mapping[str, torch.dtype] = DTYPES,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield pieces of a tensor, or of a box in it, along the first dimension, each with the index of its first row.

    Of the file only the box is read. A piece is valid until the next one is asked for.

    Args:
        file: the file, open.
        entry: the tensor.
        box: one run of indices for each dimension; None means all. Rows are counted from the box's first.
        dtypes: those that may be read, by their names in the file.

    Raises:
        ModelError: a dtype this engine does not load, or fewer bytes than the header promises.
    """
    dtype = dtypes.get(entry.dtype)
    if dtype is None:
        has = ", ".join(dtypes)
        raise ModelError(f"{entry.name!r} in {file.name} has the type {entry.dtype}; this engine loads {has}")
    shape = entry.shape or (1,)
    rows, *rest = box or [range(size) for size in shape]
    row_bytes = math.prod(map(len, rest)) * dtype.itemsize
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    buffer = _piece_buffer(min(step, len(rows)) * row_bytes)
    bytes_of = buffer.numpy().data
    for row in range(0, len(rows) if row_bytes else 0, step):
        part = rows[row : row + step]
        piece = bytes_of[: len(part) * row_bytes]
        filled = 0
        for start, length in contiguous_runs(shape, (part, *rest)):
            target = piece[filled : filled + length * dtype.itemsize]
            file.seek(entry.start + start * dtype.itemsize)
            if file.readinto(target) != len(target):  # pyright: ignore[reportAttributeAccessIssue]
                raise ModelError(f"{file.name} is cut off within {entry.name!r}")
            filled += len(target)
        yield row, buffer[: len(piece)].view(dtype).view(len(part), *map(len, rest))


def _piece_buffer(num_bytes: int) -> torch.Tensor:
    """Return memory to read into; page-locked where a GPU is in use, so that the copy there goes at the bus's speed."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())


def contiguous_runs(shape: Sequence[int], box: Sequence[range]) -> Iterator[tuple[int, int]]:
    """Yield start and length of the runs, in elements and in order, that make up a box of a row-major tensor."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    last = max((axis for axis, size in enumerate(shape) if len(box[axis]) < size), default=0)
    outer = box[:last]
    for index in itertools.product(*outer):
        start = sum(i * stride for i, stride in zip(index, strides, strict=False))
        yield start + box[last].start * strides[last], len(box[last]) * strides[last]


def _entry(name: str, values: dict[str, Any], data_start: int) -> TensorEntry:
    begin, end = values["data_offsets"]
    shape = tuple(int(size) for size in values["shape"])
    dtype = values["dtype"]
    if not isinstance(dtype, str) or begin < 0 or end < begin or any(size < 0 for size in shape):
        raise ValueError(f"{name!r} has impossible values")
    if dtype in RAW_DTYPES and end - begin != math.prod(shape) * RAW_DTYPES[dtype].itemsize:
        raise ValueError(f"{name!r} of shape {list(shape)} takes {end - begin} bytes")
    return TensorEntry(name, dtype, shape, data_start + begin, end - begin)
