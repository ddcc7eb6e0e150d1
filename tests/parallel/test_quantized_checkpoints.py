"""Ranks read their slices of quantized checkpoints, and say together what one rank says that reads all."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.weights import safetensors_loader
from engine.weights.safetensors_file import read_rows
from tests.conftest import TinyModel
from tests.models import rounding
from tests.models.test_gpt_oss import write_mxfp4
from tests.models.test_quantized_checkpoints import AWQ, CHECKPOINTS, ROWS, SIZES, compressed, layers_only, quantize
from tests.parallel.greedy_text import check_greedy_text, ranks_for
from tests.parallel.test_sharded_models import both_logits, check_close
from tests.parallel.threads import ThreadLeader, ThreadRanks, one_rank

TP2, TP3, TP4 = ({"tensor_parallel": ranks} for ranks in (2, 3, 4))
SQUARE = {"tensor_parallel": 2, "expert_parallel": 2}
MIXTURES: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, SQUARE | {"expert_replicas": 1}),
    ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, {"expert_parallel": 4}),
    ("Qwen3Moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, {"tensor_parallel": 4}),
]


@pytest.fixture(scope="module")
def llama(make_llama: Callable[..., TinyModel]) -> TinyModel:
    return make_llama(**SIZES, seed=21)


KINDS = ["awq", "gptq, not symmetric, act-order", "compressed int4 with zero points", "compressed int8"]
KINDS += ["fp8 in blocks that the parts do not fill", "compressed fp8", "the head too"]
KINDS += ["values plain, queries and keys not", "gptq of 8 bits with biases that are zero"]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_cut_through_words_groups_and_blocks_compute_what_one_computes(
    llama: TinyModel, tmp_path: Path, kind: str
) -> None:
    """Of 48 channels a rank has 24, 16 or 12, of 4 heads 2, uneven numbers, or 1, of 2 key/value heads also copies."""
    model = quantize(llama, tmp_path / "m", *CHECKPOINTS[kind])
    for grid in (TP2, TP3, TP4):
        ours, expected, _ = both_logits(model, grid)
        check_close(ours, expected)


@pytest.mark.parametrize(("family", "options", "grid"), MIXTURES)
def test_ranks_share_quantized_experts(
    make_model: Callable[..., TinyModel], tmp_path: Path, family: str, options: dict[str, Any], grid: dict[str, int]
) -> None:
    model = make_model(family, **(SIZES | options))
    stay = "gate", "lm_head"
    quantized = quantize(model, tmp_path / "m", AWQ, lambda name: None if name.endswith(stay) else rounding.awq)
    ours, expected, _ = both_logits(quantized, grid)
    check_close(ours, expected)


def test_fused_projections_are_cut_by_heads_and_channels(make_model: Callable[..., TinyModel], tmp_path: Path) -> None:
    model = quantize(make_model("Phi3", **SIZES), tmp_path / "m", *CHECKPOINTS["gptq"])
    ours, expected, _ = both_logits(model, TP3)
    check_close(ours, expected)


@pytest.mark.parametrize("grid", [SQUARE | {"expert_replicas": 1}, TP4, TP3 | {"quantization": "int4:16"}])
def test_ranks_read_their_slices_of_stacked_experts(
    make_model: Callable[..., TinyModel], tmp_path: Path, grid: dict[str, Any]
) -> None:
    plain = make_model("GptOss", num_local_experts=5, num_experts_per_tok=2, head_dim=16)
    ours, expected, _ = both_logits(write_mxfp4(plain, tmp_path), grid)  # cut through groups of 32
    check_close(ours, expected)


@pytest.mark.parametrize("scheme", ["int8", "fp8:tensor", "fp8:block", "int4:16"])
@pytest.mark.parametrize("family", ["Llama", "Mixtral"])
def test_weights_rounded_as_they_are_loaded_are_one_ranks(
    make_model: Callable[..., TinyModel], family: str, scheme: str
) -> None:
    """In both types of layers, with inputs and with outputs split, numbers keep the scale that the whole gives them."""
    model = make_model(family, **(SIZES | MIXTURES[0][1] if family == "Mixtral" else SIZES))
    ours, expected, _ = both_logits(model, TP3 | {"quantization": scheme})
    check_close(ours, expected)


def test_a_checkpoint_whose_inputs_are_rounded_too_answers_what_one_rank_does_to_the_last_bit(
    llama: TinyModel, tmp_path: Path
) -> None:
    config = compressed("int-quantized", ROWS, num_bits=8, type="int", strategy="channel", symmetric=True)
    model = quantize(llama, tmp_path / "m", config, layers_only(rounding.int8))
    ours, whole, _ = both_logits(model, TP2)
    assert torch.equal(ours, whole)


def test_a_rank_reads_its_slices_and_little_more(
    llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = {"parts": 0, "whole": 0}

    def counting(reader: Any, entry: Any, box: Any = None, *more: Any) -> Iterator[tuple[int, torch.Tensor]]:
        for row, piece in read_rows(reader, entry, box, *more):
            num_bytes[counted] += piece.nbytes if entry.name.endswith(("qweight", "qzeros", "scales")) else 0
            yield row, piece

    monkeypatch.setattr(safetensors_loader, "read_rows", counting)
    model = quantize(llama, tmp_path / "m", *CHECKPOINTS["awq"])
    config = EngineConfig(model=model.path, tensor_parallel=2, block_size=4, num_blocks=8)
    counted = "parts"
    ThreadRanks(config)
    counted = "whole"
    ModelRunner(one_rank(config), ModelConfig.from_dir(model.path))
    assert num_bytes["whole"] < num_bytes["parts"] < 1.15 * num_bytes["whole"]


@pytest.mark.parametrize(("family", "options", "grid"), [("Llama", {}, TP4), MIXTURES[0]])
def test_an_engine_with_a_quantized_checkpoint_says_the_same_on_several_ranks(
    make_model: Callable[..., TinyModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    options: dict[str, Any],
    grid: dict[str, int],
) -> None:
    monkeypatch.setattr("engine.core.RankLeader", ThreadLeader)
    stay = "gate", "lm_head"
    rounding_of = partial(rounding.awq, group=8)
    model = make_model(family, **(SIZES | options), seed=4)
    config = AWQ | {"group_size": 8}
    quantized = quantize(model, tmp_path / "m", config, lambda name: None if name.endswith(stay) else rounding_of)
    with closing(ranks_for(quantized, **grid)) as core:  # its draft model reads the same checkpoint whole
        check_greedy_text(quantized, core)
