"""What loading a model, or a rank's part, takes on a CPU at most, from files to packed weights, and what that is."""

import json
import math
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
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
CASES: dict[str, tuple[str, str, dict[str, Any], int, tuple[str, ...]]] = {  # family, type, options, files, schemes
    "dense, tied": ("Llama", "F32", {**DENSE, **TIED}, 1, ("",)),
    "dense, untied": ("Llama", "BF16", {**DENSE, **UNTIED}, 3, ("", "int8_dynamic")),
    "dense, tied, fp16": ("Llama", "F16", {**DENSE, **TIED}, 1, ("",)),
    "experts, tied": ("Mixtral", "F32", {**EXPERTS, **TIED}, 1, ("int8_dynamic",)),
    "experts, untied": ("Mixtral", "BF16", {**EXPERTS, **UNTIED}, 2, ("",)),
}
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
MEASURE = """
import json, sys
from pathlib import Path
import torch
from engine.config import EngineConfig
from engine.model_loading import load_model
from engine.model_runner import set_threads
from engine.models.config import ModelConfig
from engine.parallel.config import Place
from engine.parallel.member import Member
from engine.parallel.placement import placements_for
from engine.placement import ON_HOST

set_threads(1)  # several wait for each other where other tests run

def read_bytes(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

def load(path, quantization, num_ranks):
    config = EngineConfig(model=Path(path), quantization=quantization, tensor_parallel=num_ranks)
    sizes = ModelConfig.from_dir(Path(path))
    first = Member(Place(config.parallel, 0), None, placements_for(config, sizes)) if num_ranks > 1 else None
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read_bytes("VmRSS:")
    model = load_model(config, sizes, 16, ON_HOST, first)
    return read_bytes("VmHWM:") - before, read_bytes("VmRSS:") - before

tiny, cases = json.loads(sys.argv[1])
for _, *how in cases[-2:]:
    load(tiny, *how)  # imports what loading needs
for case in cases:
    print(*load(*case), flush=True)
"""


def write_zeros(
    path: Path, family: str, dtype: str, options: dict[str, Any], num_files: int
) -> dict[str, tuple[int, ...]]:
    """Write a checkpoint whose weights are holes in its files; return its tensors' shapes."""
    getattr(transformers, f"{family}Config")(**options, architectures=[f"{family}ForCausalLM"]).save_pretrained(path)
    views = lay_out(ModelConfig.from_dir(path), torch.device("cpu")).weight_views()
    shapes = {name: as_pieces(view).shape for name, view in views.items()}
    files = [f"model-{index}.safetensors" for index in range(num_files)] if num_files > 1 else ["model.safetensors"]
    weight_map = {name: files[index * num_files // len(shapes)] for index, name in enumerate(shapes)}
    if num_files > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file in files:
        write_file(path / file, dtype, {name: shape for name, shape in shapes.items() if weight_map[name] == file})
    return shapes


def write_file(path: Path, dtype: str, shapes: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def bytes_as_run(shapes: dict[str, tuple[int, ...]], item_bytes: int, *, is_tied: bool, is_rounded: bool) -> int:
    """Return what weights take as they are in their files or, rounded to 8 bits, beside an embedding as it is there."""
    embedding = math.prod(shapes["model.embed_tokens.weight"])
    everything = sum(math.prod(shape) for shape in shapes.values())
    if not is_rounded:
        return item_bytes * everything
    return item_bytes * embedding + everything - (0 if is_tied else embedding)


def test_loading_and_packing_peak_below_1_2_times_the_model(tmp_path: Path) -> None:
    cases: list[tuple[str, str, int, float]] = []
    for name, (family, dtype, options, num_files, schemes) in CASES.items():
        shapes = write_zeros(tmp_path / name, family, dtype, options, num_files)
        for scheme in schemes:
            is_tied = options["tie_word_embeddings"]
            size = bytes_as_run(shapes, ITEM_BYTES[dtype], is_tied=is_tied, is_rounded=bool(scheme))
            cases += [(str(tmp_path / name), scheme, ranks, size / ranks) for ranks in ((1, 2) if scheme else (1,))]
    write_zeros(tmp_path / "tiny", "Mixtral", "F32", {**EXPERTS, "vocab_size": 64, "num_hidden_layers": 1}, 1)
    given = [str(tmp_path / "tiny"), [case[:3] for case in cases]]
    command = [sys.executable, "-c", MEASURE, json.dumps(given)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    shares = {
        f"{Path(path).name} {scheme} {ranks}": [int(used) / size for used in line.split()]
        for (path, scheme, ranks, size), line in zip(cases, result.stdout.splitlines(), strict=True)
    }
    assert all(0.95 < held <= peak < 1.2 for peak, held in shares.values()), shares
