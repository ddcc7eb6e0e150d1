"""Loads are counted while a model is used, and read by those who place its experts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from engine.config import EngineConfig
from engine.models.config import ModelConfig
from engine.parallel.placement import placements_for, read_loads
from scripts.measure_expert_loads import main
from tests.conftest import TinyModel

NUM_TOKENS = 5
PROMPTS = ["once", "", "upon a time"]


def test_every_computed_token_counts_for_each_of_its_experts(
    make_model: Callable[..., TinyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALELLM_NUM_BLOCKS", "64")
    model = make_model("Mixtral", num_local_experts=5, num_experts_per_tok=2)
    (tmp_path / "prompts").write_text("\n".join(PROMPTS))
    main(model=model.path, prompts=tmp_path / "prompts", out=tmp_path / "loads.json", max_tokens=NUM_TOKENS)
    config = ModelConfig.from_dir(model.path)
    loads = read_loads(tmp_path / "loads.json", config)
    prompts = [prompt for prompt in PROMPTS if prompt]  # a byte is a token
    assert {sum(counts) for counts in loads.values()} <= {
        2 * sum(len(prompt) + made for prompt, made in zip(prompts, lengths, strict=True))
        for lengths in [(a, b) for a in range(NUM_TOKENS) for b in range(NUM_TOKENS)]
    }
    placed = placements_for(EngineConfig(expert_parallel=2, expert_loads=tmp_path / "loads.json"), config)
    assert set(placed) == set(loads)


def test_a_model_without_experts_is_refused(tiny_llama: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("once\n")
    with pytest.raises(typer.BadParameter, match="has no experts"):
        main(model=tiny_llama.path, prompts=tmp_path / "prompts", out=tmp_path / "loads.json", max_tokens=1)
