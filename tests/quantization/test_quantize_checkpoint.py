"""Checkpoints that the script writes: engine and transformers read them, and the demo model stays near the original."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from engine.config import DEFAULT_MODEL
from scripts.quantization.command import REPORT_FILE, app
from scripts.quantization.compressed import FORMATS
from scripts.quantization.rounding import round_groups
from tests.conftest import TinyModel
from tests.models.checks import TOLERANCE, core_for, engine_logits, random_prompts

INPUT_ERRORS = {"int8_dynamic": 0.1, "fp8": 0.4}  # an int8 input near a half may differ; on a CPU fp8 ones stay plain
MIXTRAL = {"num_local_experts": 3, "num_experts_per_tok": 2}


def quantize(model: Path, out: Path, scheme: str, *options: str) -> dict[str, Any]:
    """Run the command and return its report."""
    arguments = [str(model), str(out), "--scheme", scheme, "--threads", "1", "--sequences", "2", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return json.loads((out / REPORT_FILE).read_text())


@pytest.mark.parametrize("scheme", FORMATS)
def test_transformers_reads_what_the_engine_reads(tiny_llama: TinyModel, tmp_path: Path, scheme: str) -> None:
    from transformers import AutoModelForCausalLM

    report = quantize(tiny_llama.path, tmp_path / "q", scheme)
    assert report["num_bytes"][1] < report["num_bytes"][0]
    oracle: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32)
    (token_ids,) = random_prompts([30])
    theirs = TinyModel(tmp_path / "q", oracle.eval()).logits(token_ids)
    ours = engine_logits(core_for(tmp_path / "q"), token_ids)
    if scheme in INPUT_ERRORS:
        assert float((ours - theirs).norm()) < INPUT_ERRORS[scheme] * float(theirs.norm())
    else:
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * float(theirs.abs().max()))


def test_experts_are_written_and_routers_stay(make_model: Callable[..., TinyModel], tmp_path: Path) -> None:
    quantize(make_model("Mixtral", **MIXTRAL).path, tmp_path / "q", "int4")
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]
    assert [name for name in config["ignore"] if name.endswith("gate")]
    assert not [name for name in config["ignore"] if "experts" in name]


BOUNDS = {"int8": 0.01, "int8_dynamic": 0.01, "fp8": 0.02, "int4": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", BOUNDS)
def test_the_demo_model_keeps_its_perplexity(tmp_path: Path, scheme: str) -> None:
    report = quantize(DEFAULT_MODEL, tmp_path / "q", scheme)
    assert abs(report["perplexity_change"]) < BOUNDS[scheme]
    assert report["agreement"] > (0.1 if scheme == "int4" else 0.5)


def test_errors_are_passed_on_so_that_outputs_change_less() -> None:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(64, 64, generator=generator)
    inputs = torch.randn(512, 64, generator=generator) @ mixing  # correlated
    weight = torch.randn(32, 64, generator=generator)
    moments = inputs.t() @ inputs
    aware, plain = (round_groups(weight, 16, given, torch.float32).meaning() for given in (moments, moments * 0))
    errors = [float((inputs @ (rounded - weight).t()).norm()) for rounded in (aware, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_what_cannot_be_written_is_refused(tiny_llama: TinyModel, tmp_path: Path) -> None:
    for arguments, text in (
        ([str(tiny_llama.path), str(tmp_path / "q"), "--scheme", "int3"], "scheme must be one of int8"),
        ([str(tiny_llama.path), str(tmp_path)], "exists already"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert text in " ".join(result.output.replace("│", " ").split())
