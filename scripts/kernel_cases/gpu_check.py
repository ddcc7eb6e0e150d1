"""`scripts/gpu_check`: every kernel on this machine's GPU, checked against a reference in fp32 and measured; engines.

Needs torch, triton, transformers and numpy, no network, no installation of this repository, and ends within its time.
Checks come before tuning, tuning before measuring, kernels before engines, so that a short time still says what is
wrong. Ends with 1 where a case is wrong or was not checked, or an engine failed, with 2 where there is no GPU.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kernels import tuning
from scripts.kernel_cases.case import Case
from scripts.kernel_cases.ceilings import Ceilings, make_timer, measure_ceilings
from scripts.kernel_cases.check_processes import check_in_processes, default_jobs
from scripts.kernel_cases.report import document, markdown, row
from scripts.kernel_cases.survey import Result, Survey
from scripts.kernel_cases.table import all_cases
from scripts.kernel_cases.tune import Finding, chosen_of, tune

if TYPE_CHECKING:
    from scripts.benchmark.gpu_engines import Outcome

SECONDS = 540.0
TUNING_SHARE, KERNELS_SHARE = 0.35, 0.5  # of the time, by when tuning and the measuring of kernels end
SECONDS_EACH = 0.25
SECONDS_EACH_TUNED = 0.05
WHOLE_PATH = "whole path"
ENGINES = ("llama-3-8b", "mixtral-8x7b", WHOLE_PATH)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, tune, measure, print and write what the command line asks for."""
    options = _parse(arguments)
    reason = why_not()
    if reason:
        print(f"gpu_check: {reason}", file=sys.stderr)
        return 2
    if options.ranks:
        return 0 if check_ranks() else 1
    device, started = torch.device("cuda"), time.monotonic()
    name = torch.cuda.get_device_name(device)
    cases = [case for case in all_cases("gpu") if not options.only or case.op in options.only]
    timer = make_timer(device)
    ceilings = measure_ceilings(device, timer, SECONDS_EACH)

    def survey(share: float, seconds_each: float) -> Survey:
        end = started + share * options.seconds
        return Survey(device, "triton", timer, lambda: time.monotonic() < end, seconds_each)

    jobs = options.jobs or default_jobs(device)
    checked = check(check_in_processes("gpu", cases, device, jobs, started + KERNELS_SHARE * options.seconds))
    are_ranks_right = check_ranks()
    findings = show_tuning(survey(TUNING_SHARE, SECONDS_EACH_TUNED), cases)
    results = measure(survey(KERNELS_SHARE, SECONDS_EACH), cases, checked, ceilings)
    outcomes = measure_engines(ENGINES if options.engine is None else options.engine, started + options.seconds)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "torch": torch.__version__,
        "command": " ".join(["scripts/gpu_check", *(sys.argv[1:] if arguments is None else arguments)]),
    }
    if options.tuning is not None:
        print(tuning.save(options.tuning, name, chosen_of(findings)))
    _write(options.json, json.dumps(facts | everything(ceilings, results, findings, outcomes), indent=2) + "\n")
    _write(options.markdown, pages(facts, ceilings, results, findings, outcomes))
    num_wrong = sum(not result.is_correct for result in results)
    print(f"{len(results) - num_wrong} of {len(results)} cases are right", flush=True)
    is_right = not num_wrong and are_ranks_right and not any(outcome.is_failure for outcome in outcomes)
    return 0 if results and is_right else 1


def check(results: Iterable[Result]) -> list[Result]:
    """Return what checks give; a line each as it comes."""
    checked = []
    for result in results:
        print(f"{result.verdict}  {result.name}  {result.problem}", flush=True)
        checked.append(result)
    return checked


def check_ranks() -> bool:
    """Compare two ranks with one, where there are GPUs for both; return whether nothing is known to be wrong."""
    from scripts import rank_check

    reason = rank_check.why_not(torch.cuda.device_count())
    if reason:
        print(f"skipped  ranks  {reason}", flush=True)
        return True
    return rank_check.check_ranks()


def show_tuning(survey: Survey, cases: Sequence[Case]) -> list[Finding]:
    """Tune; a line for each class as it comes. Kernels take what was chosen from then on."""
    findings = []
    for finding in tune(survey, cases):
        print(finding, flush=True)
        findings.append(finding)
    return findings


def measure(survey: Survey, cases: Sequence[Case], checked: Sequence[Result], ceilings: Ceilings) -> list[Result]:
    """Measure the cases that are right; a line each as it comes."""
    by_name = {case.name: case for case in cases}
    results = []
    for result in checked:
        results.append(survey.measure(by_name[result.name], result, ceilings))
        print("  ".join(row(results[-1])), flush=True)
    return results


def measure_engines(names: Sequence[str], deadline: float) -> "list[Outcome]":
    """Measure whole engines until the clock says `deadline`; a table each as it comes."""
    if not names:
        return []
    from scripts.benchmark.gpu_engines import measure_engines
    from scripts.benchmark.shapes import Sizes

    outcomes = []
    options: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"}
    for outcome in measure_engines(names, lambda: time.monotonic() < deadline, Sizes(), **options):
        print(f"{outcome.name}: {outcome.problem or 'measured'}", flush=True)
        if outcome.report is not None:
            print(outcome.report.markdown(), flush=True)
        outcomes.append(outcome)
    return outcomes


def everything(
    ceilings: Ceilings, results: Sequence[Result], findings: Sequence[Finding], outcomes: "Sequence[Outcome]"
) -> dict[str, Any]:
    """Return all results as JSON has them."""
    parts = {"tuning": [asdict(finding) for finding in findings], "engines": [asdict(outcome) for outcome in outcomes]}
    return document(ceilings, results) | parts


def pages(
    facts: dict[str, str],
    ceilings: Ceilings,
    results: Sequence[Result],
    findings: Sequence[Finding],
    outcomes: "Sequence[Outcome]",
) -> str:
    """Return sections of `docs/performance.md`."""
    parts = [markdown("Kernels on a GPU", facts, ceilings, results), *(f"- {finding}\n" for finding in findings), "\n"]
    parts += [
        f"## {outcome.name}\n{outcome.problem}\n" if outcome.report is None else outcome.report.markdown()
        for outcome in outcomes
    ]
    return "".join(parts)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description="Check and measure every kernel on a GPU.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when to stop beginning new cases")
    parser.add_argument("--jobs", type=int, default=0, help="processes that check; by default as the machine allows")
    parser.add_argument("--only", action="append", metavar="OP", help="this operation; can be given again")
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="measure this after the kernels; all by default"
    )
    parser.add_argument("--kernels-only", dest="engine", action="store_const", const=[], help="measure no engines")
    parser.add_argument("--tuning", type=Path, metavar="FOLDER", help="keep there what was tuned, for engines")
    parser.add_argument(
        "--ranks", action="store_true", help="check two ranks beside one, on two GPUs, and nothing else"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write sections for docs/performance.md")
    return parser.parse_args(arguments)


def why_not() -> str:
    """Return what this machine lacks, or nothing."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; run it on a machine with an NVIDIA GPU and its driver"
    if importlib.util.find_spec("triton") is None:
        return "Triton's language is not installed: pip install triton"
    return ""


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")
