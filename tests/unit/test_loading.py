"""Safetensors files: read like the library reads them, refused by name where they are broken, never held twice."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import ModelError, WeightMismatch
from engine.layers.checkpoint import Piece, Pieces, Views
from engine.weights.safetensors_file import PIECE_BYTES, contiguous_runs, read_entries, read_rows
from engine.weights.safetensors_loader import load_weights, read_all_entries
from engine.weights.stored_types import keep_stored_types

ROOT = Path(__file__).resolve().parents[2]


def nothing_is_redundant(_: str) -> bool:
    return False


def test_pieces_joined_are_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.randn(3, PIECE_BYTES // 8 + 5),  # a row takes more than half a piece
        "long": torch.randn(PIECE_BYTES // 4 + 3),
        "deep": torch.randn(4, 3, 5).to(torch.bfloat16),
        "half": torch.randn(7, 2).half(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.0),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    expected = load_file(path)
    entries = read_entries(path)
    assert {entry.name for entry in entries} == set(tensors)
    with path.open("rb") as file:
        for entry in entries:
            pieces = [piece.clone() for _, piece in read_rows(file, entry)]
            joined = torch.cat(pieces) if pieces else torch.empty(entry.shape)
            assert torch.equal(joined.view(entry.shape), expected[entry.name])


def test_stacked_tensors_go_to_their_places(tmp_path: Path) -> None:
    stacked = torch.randn(3, 2, 4)
    save_file({"stacked": stacked}, tmp_path / "model.safetensors")
    parts = [torch.zeros(4, 2) for _ in range(3)]
    load_weights(tmp_path, {"stacked": [part.t() for part in parts]}, nothing_is_redundant)
    assert torch.equal(torch.stack(parts).transpose(1, 2), stacked)


def test_weights_keep_the_type_of_16_bits_that_all_their_tensors_have(tmp_path: Path) -> None:
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    save_file({name: torch.zeros(2, 3, dtype=dtype) for name, dtype in types.items()}, tmp_path / "model.safetensors")
    parts = {
        "one": ("bf16", "bf16"),
        "other": ("fp16",),
        "wide": ("fp32",),
        "mixed": ("bf16", "fp16"),
        "no": ("absent",),
    }
    with torch.device("meta"):
        linears = nn.ModuleDict({name: nn.Linear(3, 2 * len(files)) for name, files in parts.items()})
        model = nn.ModuleDict({"linears": linears, "table": nn.Embedding(2, 3), "norm": nn.LayerNorm(3)})
    entries = read_all_entries(tmp_path)
    views: Views = {"bf16": model["table"].get_parameter("weight")}
    for name, files in parts.items():
        pieces = linears[name].get_parameter("weight").split(2)
        views |= {f"{name}.{index}": piece for index, piece in enumerate(pieces)}
        entries |= {f"{name}.{index}": entries[file] for index, file in enumerate(files) if file in entries}
    keep_stored_types(model, views, entries)
    found = {name: linear.get_parameter("weight").dtype for name, linear in linears.items()}
    assert found == {"one": types["bf16"], "other": types["fp16"]} | dict.fromkeys(
        ("wide", "mixed", "no"), types["fp32"]
    )
    assert model["table"].weight.dtype == torch.bfloat16
    assert {linear.get_parameter("bias").dtype for linear in linears.values()} == {torch.float32}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_the_runs_of_a_box_are_its_elements_in_order(shape: list[int], data: st.DataObject) -> None:
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    box = [range(start, data.draw(st.integers(start + 1, size))) for start, size in zip(starts, shape, strict=True)]
    elements = torch.arange(math.prod(shape)).view(shape)[tuple(slice(r.start, r.stop) for r in box)].flatten().tolist()
    runs = list(contiguous_runs(shape, box))
    assert [index for start, length in runs for index in range(start, start + length)] == elements
    assert all(start + length < following for (start, length), (following, _) in itertools.pairwise(runs))


def test_of_a_tensor_only_the_wanted_boxes_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(6, 5, 4)
    path = tmp_path / "model.safetensors"
    save_file({"x": tensor, "y": torch.zeros(2)}, path)
    into = [torch.zeros(2, 5, 2), torch.zeros(1, 5, 4)]
    boxes = [(range(4, 6), range(5), range(1, 3)), (range(3, 4), range(5), range(4))]
    pieces = [Piece(box, part) for box, part in zip(boxes, into, strict=True)]
    load_weights(tmp_path, {"x": Pieces((6, 5, 4), pieces), "y": Pieces((2,), [])}, nothing_is_redundant)
    assert torch.equal(into[0], tensor[4:6, :, 1:3])
    assert torch.equal(into[1], tensor[3:4])


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        save_file({"x": torch.zeros(2)}, tmp_path / f"{shard}.safetensors")
    with pytest.raises(WeightMismatch, match="'x' stands in two files"):
        load_weights(tmp_path, {"x": torch.zeros(2)}, nothing_is_redundant)


def test_a_type_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'x' in .* has the type I8; this engine loads F32, F16, BF16"):
        load_weights(tmp_path, {"x": torch.zeros(2)}, nothing_is_redundant)


HEADER = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
BROKEN = {
    "empty": b"",
    "short": b"\x01\x00",
    "header past the end": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{{",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "offsets and shape disagree": (len(HEADER)).to_bytes(8, "little") + HEADER.replace(b"[2]", b"[3]") + bytes(8),
    "cut off": len(HEADER).to_bytes(8, "little") + HEADER + bytes(4),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, case: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(BROKEN[case])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_weights(tmp_path, {"x": torch.zeros(2)}, nothing_is_redundant)
