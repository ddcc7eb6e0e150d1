"""What loading a model on a CPU takes at most, from its files to packed weights, against the model as it then is."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.layers.checkpoint import as_pieces
from engine.models.config import ModelConfig
from engine.models.registry import lay_out

ROOT = Path(__file__).resolve().parents[2]
DENSE = {
    "vocab_size": 49153,  # no whole number of panels
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
EXPERTS = {**DENSE, "num_hidden_layers": 3, "num_local_experts": 8, "sliding_window": None}
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {  # a family, its file's type and options, schemes
    "dense, tied": ("Llama", "F32", {**DENSE, "tie_word_embeddings": True}, ("", "int8_dynamic")),
    "dense, untied": ("Llama", "BF16", {**DENSE, "tie_word_embeddings": False}, ("", "int8_dynamic")),
    "experts, tied": ("Mixtral", "F32", {**EXPERTS, "tie_word_embeddings": True}, ("int8_dynamic",)),
}
ITEM_BYTES = {"F32": 4, "BF16": 2}
NUMBER = struct.pack("<f", 0.1)  # no number of bf16, whose bytes are the upper two
MEASURE = """
import json, sys
from pathlib import Path
import torch
from engine.config import EngineConfig
from engine.model_loading import load_model
from engine.models.config import ModelConfig
from engine.placement import ON_HOST

def read_bytes(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

def load(path, quantization):
    config, sizes = EngineConfig(model=Path(path), quantization=quantization), ModelConfig.from_dir(Path(path))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read_bytes("VmRSS:")
    model = load_model(config, sizes, 16, ON_HOST, None)
    return read_bytes("VmHWM:") - before, read_bytes("VmRSS:") - before

tiny, cases = json.loads(sys.argv[1])
for _, quantization in cases[:2]:
    load(tiny, quantization)  # imports what loading needs
for case in cases:
    print(*load(*case), flush=True)
"""


def write_weights(path: Path, family: str, dtype: str, options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Write a checkpoint whose tensors are a hole in the file behind one number each; return their shapes."""
    getattr(transformers, f"{family}Config")(**options, architectures=[f"{family}ForCausalLM"]).save_pretrained(path)
    views = lay_out(ModelConfig.from_dir(path), torch.device("cpu")).weight_views()
    shapes = {name: as_pieces(view).shape for name, view in views.items()}
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for tensor in header.values():
            file.seek(8 + len(text) + tensor["data_offsets"][0])
            file.write(NUMBER[-ITEM_BYTES[dtype] :])
    return shapes


def bytes_as_run(shapes: dict[str, tuple[int, ...]], item_bytes: int, *, is_tied: bool, is_rounded: bool) -> int:
    """Return what weights take that are packed in so many bytes or in 8 bits, beside an embedding in fp32.

    One that is tied to a head has no memory of its own, unless the head is rounded.
    """
    embedding = math.prod(shapes["model.embed_tokens.weight"])
    everything = sum(math.prod(shape) for shape in shapes.values())
    if is_rounded:
        return 4 * embedding + everything - (0 if is_tied else embedding)
    return item_bytes * everything + (0 if is_tied else (4 - item_bytes) * embedding)


def test_loading_and_packing_peak_below_1_2_times_the_model_in_fp32(tmp_path: Path) -> None:
    cases: list[tuple[str, str, int, int]] = []
    for name, (family, dtype, options, schemes) in CASES.items():
        shapes = write_weights(tmp_path / name, family, dtype, options)
        for scheme in schemes:
            kind = {"is_tied": options["tie_word_embeddings"], "is_rounded": bool(scheme)}
            size, most = bytes_as_run(shapes, ITEM_BYTES[dtype], **kind), bytes_as_run(shapes, 4, **kind)
            cases.append((str(tmp_path / name), scheme, size, most))
    write_weights(tmp_path / "tiny", "Mixtral", "F32", {**EXPERTS, "vocab_size": 64, "num_hidden_layers": 1})
    given = [str(tmp_path / "tiny"), [case[:2] for case in cases]]
    command = [sys.executable, "-c", MEASURE, json.dumps(given)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    shares = {
        f"{Path(path).name} {scheme}": (int(peak) / most, int(held) / size)
        for (path, scheme, size, most), line in zip(cases, result.stdout.splitlines(), strict=True)
        for peak, held in [line.split()]
    }
    assert all(peak < 1.2 and 0.95 < held < 1.2 for peak, held in shares.values()), shares
