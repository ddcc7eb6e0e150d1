"""What `scripts/gpu_check` and `scripts/bench kernels` do with cases: no time for what is wrong, and an end in time."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.benchmark import kernels as bench
from scripts.kernel_cases import gpu_check
from scripts.kernel_cases.case import Case
from scripts.kernel_cases.ceilings import MOST_RUNS, Ceilings, HostTimer, measure_ceilings, num_runs
from scripts.kernel_cases.check_processes import check_in_processes
from scripts.kernel_cases.report import document, markdown, row
from scripts.kernel_cases.survey import OUT_OF_TIME, Survey
from scripts.kernel_cases.table import all_cases

CPU = torch.device("cpu")
CEILINGS = Ceilings(bytes_per_second=1e9, flops_per_second=1e12)
ROOT = Path(__file__).resolve().parents[2]


class FixedTimer:
    """Runs once and says it took a microsecond for each call so far."""

    def __init__(self) -> None:
        self.num_calls = 0

    def seconds(self, function: Callable[[], object], at_most: float) -> float:
        function()
        self.num_calls += 1
        return self.num_calls * 1e-6


def make_survey(is_time_left: Callable[[], bool] = lambda: True) -> Survey:
    return Survey(CPU, "triton", FixedTimer(), is_time_left, 0.0)


def some_cases() -> list[Case]:
    return [case for case in all_cases("tiny") if case.op == "rms_norm" and case.dtype == torch.float32][:3]


def wrong(case: Case) -> Case:
    def check(actual: object, expected: object) -> None:
        raise AssertionError("off by\none")

    return replace(case, shape="wrong", check=check)


def test_a_right_case_has_its_time_its_share_of_the_floor_and_its_speed_up() -> None:
    case, survey = some_cases()[0], make_survey()
    [checked] = survey.check([case])
    result = survey.measure(case, checked, CEILINGS)
    assert result.is_correct
    assert (result.seconds, result.reference_seconds, result.speed_up) == (1e-6, 2e-6, 2.0)
    assert result.floor_seconds == case.num_bytes / 1e9
    assert result.share == pytest.approx(case.num_bytes / 1e9 / 1e-6)
    assert (result.rate, result.unit) == (pytest.approx(case.num_bytes / 1e-6), "byte/s")


def test_a_wrong_case_is_not_measured_and_has_no_speed_up() -> None:
    case, survey = wrong(some_cases()[0]), make_survey()
    [checked] = survey.check([case])
    result = survey.measure(case, checked, CEILINGS)
    assert (result.verdict, result.problem) == ("WRONG", "AssertionError: off by one")
    assert (result.seconds, result.share, result.speed_up) == (None, None, None)
    assert row(result) == (case.name, "WRONG: AssertionError: off by one", "", "", "", "")


def test_what_no_time_is_left_for_is_named_as_not_checked_or_not_measured() -> None:
    times = iter([True, False, False])
    cases, survey = some_cases()[:2], make_survey(lambda: next(times))
    first, second = survey.check(cases)
    assert (first.verdict, second.verdict, second.problem) == ("right", "not checked", OUT_OF_TIME)
    assert survey.measure(cases[1], second, CEILINGS) is second
    unmeasured = survey.measure(cases[0], first, CEILINGS)
    assert (unmeasured.verdict, unmeasured.problem, unmeasured.seconds) == ("right", OUT_OF_TIME, None)


def test_a_case_is_bound_by_whichever_takes_longer() -> None:
    ceilings = Ceilings(bytes_per_second=100.0, flops_per_second=1000.0)
    assert ceilings.floor(50.0, 100.0) == 0.5
    assert ceilings.floor(50.0, 900.0) == 0.9


def test_runs_fit_the_time_but_are_never_too_few_or_too_many() -> None:
    assert [num_runs(seconds, 0.1) for seconds in (1.0, 0.01, 1e-7)] == [3, 10, MOST_RUNS]
    calls: list[int] = []
    HostTimer().seconds(lambda: calls.append(1), 10.0)
    assert len(calls) == MOST_RUNS + 2


def test_a_run_that_takes_longer_than_all_may_counts_by_itself() -> None:
    calls: list[int] = []
    assert HostTimer().seconds(lambda: calls.append(1), 0.0) > 0.0
    assert len(calls) == 2


def test_ceilings_are_what_a_copy_and_a_product_do() -> None:
    ceilings = measure_ceilings(CPU, FixedTimer(), 0.0)
    assert ceilings.bytes_per_second == 2**29 / 1e-6
    assert ceilings.flops_per_second == 2 * 1024**3 / 2e-6


@pytest.mark.parametrize("size", ["tiny", "cpu", "gpu"])
def test_cases_have_names_of_their_own_and_traffic(size: str) -> None:
    cases = all_cases(size)  # pyright: ignore[reportArgumentType]
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.num_bytes > 0 and case.num_flops >= 0 for case in cases)


def test_the_gpu_check_checks_all_before_it_measures_any(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [*some_cases()[:2], wrong(some_cases()[2])]
    survey = make_survey()
    results = gpu_check.measure(survey, cases, gpu_check.check(survey.check(cases)), CEILINGS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["right", "right", "WRONG"]
    assert [result.is_correct for result in results] == [True, True, False]
    page = markdown("Kernels", {"date": "today", "device": "this one"}, CEILINGS, results)
    assert "date: today, device: this one." in page
    assert "2 of 3 cases are right. Not: rms_norm, wrong, float32." in page
    assert len(document(CEILINGS, results)["results"]) == 3


def test_processes_check_what_they_are_named_and_answer_in_order() -> None:
    cases = some_cases()
    results = list(check_in_processes("tiny", cases, CPU, 1, math.inf))
    assert [(result.name, result.verdict) for result in results] == [(case.name, "right") for case in cases]
    [late] = check_in_processes("tiny", cases[:1], CPU, 1, 0.0)
    assert late.problem == OUT_OF_TIME


def test_without_a_gpu_the_check_says_so_and_needs_nothing_but_torch_triton_transformers_and_numpy() -> None:
    absent = [
        "numba",
        "llvmlite",
        "rich",
        "typer",
        "pydantic",
        "psutil",
        "tritonclient",
        "llguidance",
        "uvloop",
        "hpack",
    ]
    program = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({absent})); sys.path = [p for p in sys.path if p]\n"
        f"sys.path.insert(0, {str(ROOT)!r}); import scripts.benchmark.gpu_engines, engine.core\n"
        f"sys.argv = ['gpu_check']; runpy.run_path({str(ROOT / 'scripts' / 'gpu_check')!r}, run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 2, run.stderr
    assert "sees no CUDA device; run it on a machine with an NVIDIA GPU" in run.stderr


def test_the_benchmark_takes_the_cpu_where_there_is_no_gpu() -> None:
    assert bench.choose_side() == (CPU, "cpu", "cpu")
