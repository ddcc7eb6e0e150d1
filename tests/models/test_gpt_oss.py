"""gpt-oss against transformers: sinks, alternating windows, yarn, clamped experts with biases, MXFP4 checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import WeightMismatch
from engine.quantization.layout import Cut
from engine.quantization.mxfp4 import Mxfp4Layout
from tests.conftest import TinyModel
from tests.models.checks import check_greedy, check_logits, core_for
from tests.models.test_rounding_on_load import ROUNDINGS, rounded

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
    "odd sizes, tied, clamped": {
        "num_local_experts": 3,
        "num_experts_per_tok": 3,
        "intermediate_size": 36,
        "head_dim": 24,
        "num_key_value_heads": 4,
        "sliding_window": 13,
        "tie_word_embeddings": True,
        "initializer_range": 0.6,
        "seed": 1,
    },
}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens"]}}
STACKS = ("experts.gate_up_proj", "experts.down_proj")
DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize("variant", VARIANTS)
def test_gpt_oss_says_what_transformers_says(make_model: Callable[..., TinyModel], variant: str) -> None:
    model = make_model("GptOss", **VARIANTS[variant])
    check_logits(model)
    check_greedy(model)


def write_mxfp4(model: TinyModel, path: Path, change: dict[str, torch.Tensor | None] | None = None) -> TinyModel:
    """Write the model with random MXFP4 experts, scales in another file than blocks; transformers dequantizes them."""
    tensors = load_file(model.path / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name in [name for name in tensors if name.endswith(STACKS)]:
        num_experts, num_inputs, num_outputs = tensors.pop(name).shape
        groups = num_experts, num_outputs, num_inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(256, (*groups, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(118, 126, groups, dtype=torch.uint8, generator=generator)
    tensors = {name: tensor for name, tensor in (tensors | (change or {})).items() if tensor is not None}
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / file).write_bytes((model.path / file).read_bytes())
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | MXFP4))
    files = {name: f"{'one' if name.endswith('_scales') else 'two'}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, path / file, metadata={"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return TinyModel(path, model.oracle)


@pytest.fixture
def plain(make_model: Callable[..., TinyModel]) -> TinyModel:
    return make_model("GptOss", **VARIANTS["as published"])


def test_mxfp4_as_published_says_what_transformers_says(plain: TinyModel, tmp_path: Path) -> None:
    model = write_mxfp4(plain, tmp_path)
    oracle = type(plain.oracle).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    model = TinyModel(model.path, oracle)
    check_logits(model)
    check_logits(rounded(model, ROUNDINGS["int8"], head=True), quantization="int8")


def test_mxfp4_numbers_are_those_of_the_standard() -> None:
    blocks = torch.zeros(1, 2, 16, dtype=torch.uint8)
    blocks[0, 0, 0], blocks[0, 1, 0], blocks[0, 1, 15] = 0xF1, 0x72, 0x4A  # pairs, low bits first
    scales = torch.tensor([[0, 130]], dtype=torch.uint8)  # 2^-127 and 2^3
    read = Mxfp4Layout().read({"blocks": blocks, "scales": scales}, Cut.whole(1, 64)).dequantize()
    found = {index: value for index, value in enumerate(read[0].tolist()) if value}
    assert found == {0: 0.5 * 2.0**-127, 1: -6 * 2.0**-127, 32: 8.0, 33: 48.0, 62: -8.0, 63: 16.0}


BROKEN: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no scales": ({f"{DOWN}_scales": None}, rf"1 tensors are missing, the first is '{DOWN}_scales'"),
    "no blocks": ({f"{DOWN}_blocks": None}, rf"1 tensors are missing, the first is '{DOWN}_blocks'"),
    "a scale too few": (
        {f"{DOWN}_scales": torch.zeros(5, 64, 2, dtype=torch.uint8)},
        rf"'{DOWN}_scales' has shape \[5, 64, 2\], expected \[5, 64, 3\]",
    ),
    "scales that are none": (
        {f"{DOWN}_scales": torch.full((5, 64, 3), 255, dtype=torch.uint8)},
        rf"expert 0 of '{DOWN}' cannot be read: one of its scales is NaN",
    ),
    "plain weights too": ({DOWN: torch.zeros(5, 96, 64)}, rf"unexpected tensor '{DOWN}'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_mxfp4_is_refused_by_name(plain: TinyModel, tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    model = write_mxfp4(plain, tmp_path, change)
    with pytest.raises(WeightMismatch, match=message):
        core_for(model.path)


def test_mxfp4_of_a_width_without_whole_groups_is_refused(make_model: Callable[..., TinyModel], tmp_path: Path) -> None:
    model = make_model("GptOss", **VARIANTS["odd sizes, tied, clamped"])
    with pytest.raises(WeightMismatch, match="groups of 32 do not divide 36 inputs"):
        core_for(write_mxfp4(model, tmp_path).path)
