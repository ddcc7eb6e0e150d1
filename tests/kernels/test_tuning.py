"""Kernels take what was measured on their device, and nothing else than what their tables list."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import tuning
from kernels.paged_attention.tiling import choose_tiling
from kernels.quantized_linear.triton_kernel import launch_options
from scripts.kernel_cases.case import Case
from scripts.kernel_cases.survey import Survey
from scripts.kernel_cases.table import all_cases
from scripts.kernel_cases.tune import chosen_of, tune

DEVICE = "NVIDIA H200"
FEW_ROWS = "int8, up to 16 rows"
MEASURED: tuning.Chosen = {
    "quantized_linear": {FEW_ROWS: (32, 64, 4, 4)},
    "paged_attention": {"sm_90 decode, 2 bytes, 128 channels": (16, 32, 2, 4)},
}


@pytest.fixture(autouse=True)
def _literal_afterwards() -> Iterator[None]:
    yield
    for op in tuning.OPS:
        tuning.choices_of(op).tuned = {}


def test_what_was_measured_is_taken_and_everything_else_stays(tmp_path: Path) -> None:
    literal = launch_options("int8", 8, 128)
    tuning.save(tmp_path, DEVICE, MEASURED)
    assert tuning.use(tmp_path, DEVICE)
    assert launch_options("int8", 8, 128) == literal | {"BLOCK_T": 32, "BLOCK_O": 64, "num_stages": 4}
    assert launch_options("int8_weight_only", 8, 128) == literal
    assert (choose_tiling(90, "decode", 2, 128, 4).positions, choose_tiling(80, "decode", 2, 128, 4).positions) == (
        32,
        64,
    )


def test_without_a_file_the_log_says_that_literal_configurations_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert not tuning.use(tmp_path, DEVICE)
    assert "literal configurations" in caplog.text
    assert str(tuning.path_of(tmp_path, DEVICE)) in caplog.text


def _with(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda content: json.dumps(content | changes)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (lambda content: json.dumps(content)[:40], "it is no JSON"),
        (lambda _content: "[1]", "it is no JSON object"),
        (lambda _content: "[" * 100_000, "it is no JSON"),
        (lambda content: json.dumps(content) + " " * tuning.MOST_BYTES, "larger than"),
        (_with(device="another"), "its device is 'another'"),
        (_with(triton="0.1"), "its triton is '0.1'"),
        (_with(sources="old"), "its sources is 'old'"),
        (_with(chosen=[]), "no JSON objects"),
        (_with(chosen={"quantized_linear": 3}), "no JSON objects"),
        (_with(chosen={"os": {"system": [1]}}), "os has no configuration [1] for 'system'"),
        (_with(chosen={"quantized_linear": {FEW_ROWS: [512, 512, 64, 9]}}), "has no configuration [512, 512, 64, 9]"),
        (_with(chosen={"quantized_linear": {FEW_ROWS: "x", "other": [1]}}), "has no configuration 'x'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_as_a_whole_with_a_reason(
    damaged: Callable[[dict[str, Any]], str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, literal = tuning.save(tmp_path, DEVICE, MEASURED), launch_options("int8", 8, 128)
    path.write_text(damaged(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert not tuning.use(tmp_path, DEVICE)
    assert launch_options("int8", 8, 128) == literal
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.getMessage()


class StandInTimer:
    """Runs once, and says that it took what `cost` says of the configuration in use."""

    def __init__(self, cost: Callable[[], float]) -> None:
        self.cost = cost

    def seconds(self, function: Callable[[], object], at_most: float) -> float:
        function()
        return self.cost()


def some_cases() -> list[Case]:
    cases = [case for case in all_cases("tiny") if case.function == "int8_linear" and case.dtype == torch.float16]
    return [case for case in cases if "-> 33" in case.name]


def findings_at(cost: Callable[[], float]) -> list[Any]:
    survey = Survey(torch.device("cpu"), "triton", StandInTimer(cost), lambda: True, 0.0)
    return list(tune(survey, some_cases()))


def test_the_fastest_configuration_is_chosen_and_kept(tmp_path: Path) -> None:
    choices = tuning.choices_of("quantized_linear")
    fastest = (64, 128, 4, 4)
    [finding] = findings_at(lambda: {fastest: 0.5, (32, 64, 4, 4): 0.7}.get(choices.of(FEW_ROWS), 1.0))
    assert (finding.chosen, finding.gain) == (fastest, 2.0)
    assert launch_options("int8", 8, 128)["BLOCK_T"] == 64
    chosen = chosen_of([finding])
    assert chosen == {"quantized_linear": {FEW_ROWS: fastest}}
    assert tuning.read(tuning.save(tmp_path, DEVICE, chosen), DEVICE) == chosen


def test_a_small_gain_is_noise_and_a_failing_configuration_is_passed_over() -> None:
    choices = tuning.choices_of("quantized_linear")

    def cost() -> float:
        rows = choices.of(FEW_ROWS)[0]
        if rows == 128:
            raise RuntimeError("out of resources: shared memory")
        return 0.99 if rows == 64 else 1.0

    [finding] = findings_at(cost)
    assert finding.chosen == finding.literal == choices.of(FEW_ROWS)
    assert not chosen_of([finding])
