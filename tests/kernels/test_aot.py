"""What is said of compiled kernels; beside these tests `scripts/test` compiles them all by `python -m kernels.aot`."""

import json

import pytest

from kernels import aot
from kernels.aot import CAPABILITIES, OPS, Report, count_loop_spills, shipped_builds


def test_every_op_has_a_few_builds_that_stand_for_it_on_every_gpu() -> None:
    for op in OPS:
        sampled = [build for build in shipped_builds(op).values() if build.is_sampled]
        assert {capability for build in sampled for capability in build.capabilities} == set(CAPABILITIES)


def test_one_problem_among_the_reports_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [Report("op", "fine", 80, 1.0), Report("op", "broken", 90, 1.0, error="no such type")]
    monkeypatch.setattr(aot, "compile_all", lambda *_: iter(reports))
    monkeypatch.setattr("sys.argv", ["kernels.aot", "--problems"])
    assert aot.main() == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line.endswith("broken  FAILED: no such type")
    assert summary == "2 kernels compiled, 1 with problems"
    monkeypatch.setattr("sys.argv", ["kernels.aot", "--json"])
    assert aot.main() == 1
    problems = [json.loads(line)["problem"] for line in capsys.readouterr().out.splitlines()]
    assert problems == ["", "no such type"]
    reports.pop()
    assert aot.main() == 0


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
