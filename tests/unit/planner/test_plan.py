"""`scripts/plan`: which layouts there are, where the best one changes, and what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.models.config import ModelConfig
from engine.quantization.config import read_checkpoint_quantization
from scripts.launcher.paths import DEFAULT_MODEL, ROOT
from scripts.planner.command import app
from scripts.planner.devices import PUBLISHED, PlanError
from scripts.planner.kept import BYTES, Types, checkpoint_types, rounded_types
from scripts.planner.layouts import Layout
from scripts.planner.load import Workload
from scripts.planner.plan import Setting, best_changes, make_plan, thresholds
from scripts.planner.step import StepModel
from scripts.planner.work import count_work

MIXTRAL = ROOT / "docs" / "plans" / "mixtral-8x7b"
SETTING = Setting(
    model=ModelConfig.from_dir(MIXTRAL),
    device=PUBLISHED["H100"],
    num_devices=8,
    types=Types("bf16", "bf16"),
    work=Workload(512, 128, max_num_seqs=1024, token_budget=2048),
)


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["--device", "H100", *options])
    return result.exit_code, result.output


def test_few_requests_want_a_wide_replica_and_many_want_narrow_ones() -> None:
    plan = make_plan(SETTING)
    changes = best_changes(plan.options)
    assert changes[0].after == "tp8"
    assert len(changes) > 1
    widths = [next(o for o in plan.options if o.name == change.after).layout.num_ranks for change in changes]
    assert widths == sorted(widths, reverse=True)


def test_changes_are_where_trying_every_concurrency_finds_them() -> None:
    options = make_plan(SETTING).options
    changes = best_changes(options)
    for change in changes[1:]:
        below, here = ({o.name: o.tokens_per_s(at) for o in options} for at in (change.at - 1, change.at))
        assert max(below, key=below.__getitem__) == change.before
        assert max(here, key=here.__getitem__) == change.after


def test_a_threshold_divides_where_one_layout_is_better_from_where_the_other_is() -> None:
    options = {option.name: option for option in make_plan(SETTING).options}
    found = list(thresholds(tuple(options.values())))
    assert ("tp8", "4 x tp2") in {(each.before, each.after) for each in found}
    for each in found:
        low, high = options[each.before], options[each.after]
        assert low.tokens_per_s(each.at - 1) >= high.tokens_per_s(each.at - 1)
        assert low.tokens_per_s(each.at) < high.tokens_per_s(each.at)


def test_layouts_that_cannot_be_are_named_with_the_reason() -> None:
    refused = {layout.name: reason for layout, reason in make_plan(SETTING).refused}
    assert "87.0 GiB of weights in 67.1 GiB of a device" in refused["8 x one"]
    dense = replace(SETTING, model=ModelConfig.from_dir(DEFAULT_MODEL), num_devices=32)
    refused = {layout.name: reason for layout, reason in make_plan(dense).refused}
    assert "experts" in refused["16 x ep2"]
    assert "query heads" in refused["tp32"]


def test_a_small_cache_limits_the_batch() -> None:
    (option, *_) = make_plan(replace(SETTING, kv_bytes=2**30)).options
    assert option.kv_tokens == 8 * 2**30 // (128 * 1024)
    assert option.largest_batch == option.kv_tokens // 640


def test_what_a_device_or_a_step_cannot_do_is_refused() -> None:
    with pytest.raises(PlanError, match="no rate for fp8"):
        make_plan(
            replace(SETTING, device=replace(PUBLISHED["A100"], compute={"int8": 1e12}), types=Types("fp8", "fp8"))
        )
    with pytest.raises(PlanError, match="32768 positions"):
        make_plan(replace(SETTING, work=Workload(32_000, 1_000, max_num_seqs=1024, token_budget=2048)))
    with pytest.raises(PlanError, match="leaves nothing for prompts"):
        make_plan(replace(SETTING, work=Workload(512, 128, max_num_seqs=512, token_budget=512)))


def test_the_command_writes_a_plan_with_thresholds_and_shows_every_layout(tmp_path: Path) -> None:
    code, text = run("--model", str(MIXTRAL), "--count", "8", "--json", str(tmp_path / "plan.json"))
    assert code == 0, text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["kind"] == "predicted"
    assert "published" in plan["device"]["source"]
    names = [layout["name"] for layout in plan["layouts"]]
    assert all(name in text for name in [*names, "8 x one cannot be"])
    assert plan["best"][0] == {"from": 1, "layout": "tp8"}
    assert {each["low"] for each in plan["thresholds"]} <= set(names)
    rows = plan["layouts"][0]["rows"]
    assert (rows[0]["in_flight"], rows[-1]["in_flight"]) == (1, 1024)


def test_a_model_that_fits_nowhere_is_an_error_that_says_why() -> None:
    code, text = run("--model", str(MIXTRAL / "config.json"))
    assert code == 1
    assert "one cannot be: 87.0 GiB of weights" in text


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4"),
        (None, "bf16"),
    ],
)
def test_weights_are_of_the_checkpoints_type(tmp_path: Path, method: dict[str, object] | None, weights: str) -> None:
    raw = json.loads((MIXTRAL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | ({"quantization_config": method} if method else {})))
    code, text = run("--model", str(tmp_path), "--count", "8")
    assert code == 0, text
    assert f"{weights} weights" in text


CPU = replace(PUBLISHED["H100"], name="a CPU", compute={"fp32": 1e11, "int8": 3e11}, is_cpu=True)
W8A8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}


def compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("method", "on_gpu", "on_cpu"),
    [
        (None, ("bf16", "bf16", "bf16"), ("bf16", "bf16", "fp32")),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, ("int4", "bf16", "bf16"), ("fp32", "bf16", "fp32")),
        ({"quant_method": "gptq", "bits": 8, "group_size": 64}, ("bf16", "bf16", "bf16"), ("fp32", "bf16", "fp32")),
        ({"quant_method": "fp8"}, ("fp8", "bf16", "fp8"), ("fp32", "bf16", "fp32")),
        ({"quant_method": "mxfp4"}, ("bf16", "bf16", "bf16"), ("bf16", "bf16", "fp32")),
        (compressed("int-quantized", W8A8, W8A8), ("int8", "bf16", "int8"), ("int8", "bf16", "int8")),
        (compressed("int-quantized", W8A8, None), ("int8", "bf16", "bf16"), ("fp32", "bf16", "fp32")),
        (compressed("pack-quantized", W8A8, None), ("int8", "bf16", "bf16"), ("fp32", "bf16", "fp32")),
    ],
)
def test_weights_head_and_operands_are_those_that_the_engine_has_on_that_device(
    method: dict[str, Any] | None, on_gpu: tuple[str, ...], on_cpu: tuple[str, ...]
) -> None:
    plain = ModelConfig.from_dir(DEFAULT_MODEL)
    quantization = None if method is None else read_checkpoint_quantization({"quantization_config": method})
    model = replace(plain, quantization=quantization)
    for device, expected in ((PUBLISHED["H100"], on_gpu), (CPU, on_cpu)):
        types = checkpoint_types(model, device, "fp32")
        assert (types.weights, types.head_type, types.operands(device)) == expected


def test_rounding_takes_the_head_and_a_tied_embedding_stays() -> None:
    model = ModelConfig.from_dir(DEFAULT_MODEL)
    work, table = count_work(model), model.vocab_size * model.hidden_size
    for weights, head_bytes in (("int8", 1 + 2), ("int4", 2), ("bf16", 2)):
        types = rounded_types(model, PUBLISHED["H100"], "bf16", weights)
        rest = (work.num_parameters - table) * BYTES[weights]
        found = StepModel(model, PUBLISHED["H100"], Layout(1, 1), types).weight_bytes
        assert found == pytest.approx(rest + head_bytes * table)
    with pytest.raises(PlanError, match="on a CPU the engine keeps int4 weights as fp32"):
        rounded_types(model, CPU, "fp32", "int4")


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "/none"],
        ["--model", str(MIXTRAL), "--weights", "fp2"],
        ["--model", str(MIXTRAL), "--kv-cache", "int4"],
        ["--model", str(MIXTRAL), "--count", "8", "--json", "/none/plan.json"],
    ],
)
def test_bad_options_are_refused(options: list[str]) -> None:
    code, text = run(*options)
    assert code == 2
    assert "Traceback" not in text


def test_a_plot_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, text = run("--model", str(MIXTRAL), "--count", "8", "--plot", str(tmp_path / "plan.png"))
    assert code == 0, text
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
