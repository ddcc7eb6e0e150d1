"""Shipped Triton kernels become cubins that fit their GPUs: a few of each op in the fast tests, all in the slow."""

import json
import os
import subprocess
import sys

import pytest

from kernels.aot import CAPABILITIES, OPS, Report, shipped_builds


def compile_builds(*options: str) -> list[dict]:
    """Run the harness where nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.aot", "--json", "--jobs", str(os.cpu_count() or 1), *options]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert run.stdout, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def sampled_reports() -> list[dict]:
    return compile_builds("--sampled")


@pytest.mark.parametrize("op", OPS)
def test_sampled_builds_compile_for_every_gpu_and_fit_it(op: str, sampled_reports: list[dict]) -> None:
    reports = [report for report in sampled_reports if report["op"] == op]
    assert {report["capability"] for report in reports} == set(CAPABILITIES)
    assert not [report for report in reports if report["problem"]]


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_all_builds_compile_and_fit(op: str) -> None:
    reports = compile_builds(op)
    assert len(reports) == sum(len(build.capabilities) for build in shipped_builds(op).values())
    assert not [report for report in reports if report["problem"]]


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (Report("op", "fine", 80, 1.0, registers=255, shared=163 * 1024), ""),
        (Report("op", "spills", 90, 1.0, stack=8), "spills 8 bytes a thread"),
        (Report("op", "wide", 80, 1.0, shared=200_000), "needs 200000 bytes of shared memory of 166912"),
        (Report("op", "wide", 90, 1.0, shared=200_000), ""),
        (Report("op", "broken", 90, 1.0, error="no such type"), "no such type"),
    ],
)
def test_a_report_names_what_does_not_fit(report: Report, problem: str) -> None:
    assert report.problem == problem
