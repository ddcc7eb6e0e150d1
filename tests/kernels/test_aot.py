"""Shipped Triton kernels become cubins that fit their GPUs: a few of each op in the fast tests, more in the slow.

All of them, ten minutes on two quiet cores, are what `python -m kernels.aot` compiles.
"""

import json
import os
import subprocess
import sys

import pytest

from kernels.aot import CAPABILITIES, OPS, Report, count_loop_spills, shipped_builds


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
def test_every_twentieth_build_compiles_and_fits() -> None:
    reports = compile_builds("--every", "20")  # no multiple of three, so that it goes around the GPUs
    num_builds = sum(len(build.capabilities) for op in OPS for build in shipped_builds(op).values())
    assert len(reports) == -(-num_builds // 20)
    assert {report["op"] for report in reports} == set(OPS)
    assert not [report for report in reports if report["problem"]]


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (Report("op", "fine", 80, 1.0, registers=255, shared=163 * 1024), ""),
        (Report("op", "spills", 90, 1.0, stack=8, loop_spills=3), "spills 3 times in loops"),
        (Report("op", "keeps", 90, 1.0, stack=512), ""),
        (Report("op", "keeps", 90, 1.0, stack=520), "keeps 520 bytes a thread on the stack, of 512"),
        (Report("op", "wide", 80, 1.0, shared=200_000), "needs 200000 bytes of shared memory of 166912"),
        (Report("op", "wide", 90, 1.0, shared=200_000), ""),
        (Report("op", "broken", 90, 1.0, error="no such type"), "no such type"),
    ],
)
def test_a_report_names_what_does_not_fit(report: Report, problem: str) -> None:
    assert report.problem == problem


def test_only_spills_between_a_backward_branch_and_its_target_are_in_a_loop() -> None:
    sass = """
        /*0000*/                   STL [R1], R70 ;                 /* 0x0000004601007387 */
                                                                   /* 0x0001e80000100800 */
        /*0010*/              @!P0 BRA 0x60 ;
        /*0020*/                   LDL.LU R84, [R1+0x10] ;
        /*0030*/                   HMMA.16816.F32.BF16 R92, R48.reuse, R92, RZ ;
        /*0040*/                   STL.64 [R1+0x10], R84 ;
        /*0050*/               @P1 BRA P2, 0x20 ;
        /*0060*/                   LDL R2, [R1] ;
        /*0070*/                   BRA 0x70;
    """
    assert count_loop_spills(sass) == 2
