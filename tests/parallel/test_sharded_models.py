"""Ranks together compute what one computes: every family, even and uneven parts, every way to send tokens around."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.parallel import experts
from tests.conftest import TinyModel
from tests.models.checks import SMALL, TOLERANCE, random_prompts
from tests.models.test_moe import QWEN_SIZES
from tests.parallel.greedy_text import check_greedy_text, ranks_for
from tests.parallel.threads import ThreadLeader, ThreadRanks, one_rank, whole_batch

GPT_OSS = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
QWEN2_MOE = QWEN_SIZES | {"shared_expert_intermediate_size": 37, "decoder_sparse_step": 2}
UNEVEN = {
    "hidden_size": 60,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 53,
    "vocab_size": 277,
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "tp 2": ("Llama", {}, {"tensor_parallel": 2}),
    "tp 4, key/value heads copied": ("Llama", {}, {"tensor_parallel": 4}),
    "tp 2, uneven": ("Llama", UNEVEN, {"tensor_parallel": 2}),
    "tp 4, uneven, copied unevenly": ("Llama", UNEVEN, {"tensor_parallel": 4}),
    "tp 5, tied, biases": (
        "Llama",
        UNEVEN | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"tensor_parallel": 5},
    ),
    "norms on heads": ("Qwen3", {"head_dim": 16}, {"tensor_parallel": 3}),
    "fused checkpoint": ("Phi3", {}, {"tensor_parallel": 3}),
    "scaled embedding, soft caps": ("Gemma2", {"head_dim": 16, "sliding_window": 8}, {"tensor_parallel": 2}),
    "experts split": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, {"tensor_parallel": 2}),
    "ep 2": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {"expert_parallel": 2}),
    "ep 4, uneven": ("Mixtral", {"num_local_experts": 7, "num_experts_per_tok": 3}, {"expert_parallel": 4}),
    "2 x 2, copies of experts": (
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        {"tensor_parallel": 2, "expert_parallel": 2, "expert_replicas": 3},
    ),
    "2 x 2, a shared expert, dense layers": (
        "Qwen2Moe",
        QWEN2_MOE,
        {"tensor_parallel": 2, "expert_parallel": 2},
    ),
    "2 x 2, stacked experts with biases, sinks": ("GptOss", GPT_OSS, {"tensor_parallel": 2, "expert_parallel": 2}),
}


def tokens_for(model: TinyModel) -> list[int]:
    return random_prompts([40], vocab_size=model.oracle.config.vocab_size, seed=9)[0]


def both_logits(model: TinyModel, grid: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, ThreadRanks]:
    token_ids = tokens_for(model)
    config = EngineConfig(model=model.path, **(SMALL | grid))  # pyright: ignore[reportArgumentType]
    whole = ModelRunner(one_rank(config), ModelConfig.from_dir(model.path))
    ranks = ThreadRanks(config)
    return ranks.logits(token_ids), whole.compute(whole_batch(token_ids, whole))[0], ranks


def check_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=TOLERANCE / 10 * float(expected.abs().max()))
    assert torch.equal(ours.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize("case", CASES)
def test_ranks_together_compute_what_one_computes(make_model: Callable[..., TinyModel], case: str) -> None:
    family, sizes, grid = CASES[case]
    ours, expected, _ = both_logits(make_model(family, **sizes), grid)
    check_close(ours, expected)


@pytest.mark.parametrize(
    "case", ["ep 2", "ep 4, uneven", "2 x 2, copies of experts", "2 x 2, a shared expert, dense layers"]
)
def test_tokens_that_are_exchanged_come_back_complete(
    make_model: Callable[..., TinyModel], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "prefers_exchange", lambda *_: True)
    family, sizes, grid = CASES[case]
    ours, expected, ranks = both_logits(make_model(family, **sizes), grid)
    check_close(ours, expected)
    assert all(each.num_exchanges > 0 for each in ranks.collectives)


def test_an_engine_that_exchanges_every_token_says_what_transformers_says(
    make_model: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "prefers_exchange", lambda *_: True)
    monkeypatch.setattr("engine.core.RankLeader", ThreadLeader)
    family, sizes, grid = CASES["ep 4, uneven"]
    model = make_model(family, **sizes)
    with closing(ranks_for(model, **grid)) as core:  # steps of fewer tokens than groups among them
        check_greedy_text(model, core)


ROUNDED = {
    "tp 4, uneven": CASES["tp 4, uneven, copied unevenly"],
    "tp 5, tied, biases": CASES["tp 5, tied, biases"],
    "experts split": CASES["experts split"],
    "ep 4, uneven": CASES["ep 4, uneven"],
    "2 x 2, a shared expert, dense layers": CASES["2 x 2, a shared expert, dense layers"],
    "2 x 2, biases of experts": CASES["2 x 2, stacked experts with biases, sinks"],
}


@pytest.mark.parametrize("case", ROUNDED)
def test_a_model_that_rounds_its_inputs_answers_what_one_rank_does_to_the_last_bit(
    make_model: Callable[..., TinyModel], case: str
) -> None:
    family, sizes, grid = ROUNDED[case]
    ours, expected, _ = both_logits(make_model(family, **sizes), grid | {"quantization": "int8_dynamic"})
    assert torch.equal(ours, expected)


def test_a_rank_holds_its_part_and_no_more(make_model: Callable[..., TinyModel]) -> None:
    model = make_model("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    config = EngineConfig(model=model.path, expert_parallel=2, tensor_parallel=2, block_size=4, num_blocks=8)
    sizes = [sum(p.numel() for p in runner.model.parameters()) for runner in ThreadRanks(config).runners]
    whole = sum(p.numel() for p in ModelRunner(one_rank(config), ModelConfig.from_dir(model.path)).model.parameters())
    assert max(sizes) < 0.27 * whole


@pytest.mark.parametrize(
    "case",
    [
        "tp 2, uneven",
        "tp 4, key/value heads copied",
        "ep 2",
        "ep 4, uneven",
        "2 x 2, copies of experts",
        "2 x 2, a shared expert, dense layers",
    ],
)
def test_an_engine_on_several_ranks_says_what_transformers_says(
    make_model: Callable[..., TinyModel], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.core.RankLeader", ThreadLeader)
    family, sizes, grid = CASES[case]
    model = make_model(family, **sizes)
    with closing(ranks_for(model, **grid)) as core:
        check_greedy_text(model, core)
