"""`scripts/gpu_check`: every kernel on this machine's GPU, checked against a reference in fp32, then measured.

Needs torch, triton and numpy, no network, no installation of this repository, and ends within its time. Checks come
before measurements, so that a short time still says what is wrong. Ends with 1 where a case is wrong or was not
checked, with 2 where there is no GPU.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from scripts.kernel_cases.ceilings import Ceilings, make_timer, measure_ceilings
from scripts.kernel_cases.report import document, markdown, row
from scripts.kernel_cases.survey import Result, Survey
from scripts.kernel_cases.table import all_cases

SECONDS = 540.0
SECONDS_EACH = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print and write what the command line asks for."""
    options = _parse(arguments)
    reason = _why_not()
    if reason:
        print(f"gpu_check: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    deadline = time.monotonic() + options.seconds
    survey = Survey(device, "triton", make_timer(device), lambda: time.monotonic() < deadline, SECONDS_EACH)
    cases = [case for case in all_cases("gpu") if not options.only or case.op in options.only]
    ceilings = measure_ceilings(device, survey.timer, SECONDS_EACH)
    results = run(survey, cases, ceilings)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "command": " ".join(["scripts/gpu_check", *(sys.argv[1:] if arguments is None else arguments)]),
    }
    _write(options.json, json.dumps(facts | document(ceilings, results), indent=2) + "\n")
    _write(options.markdown, markdown("Kernels on a GPU", facts, ceilings, results))
    wrong = [result for result in results if not result.is_correct]
    print(f"{len(results) - len(wrong)} of {len(results)} cases are right", flush=True)
    return 1 if wrong or not results else 0


def run(survey: Survey, cases: Sequence, ceilings: Ceilings) -> list[Result]:
    """Check all cases, then measure the right ones; a line each as it comes."""
    by_name = {case.name: case for case in cases}
    checked = []
    for result in survey.check(cases):
        print(f"{result.verdict}  {result.name}  {result.problem}", flush=True)
        checked.append(result)
    results = []
    for result in checked:
        results.append(survey.measure(by_name[result.name], result, ceilings))
        print("  ".join(row(results[-1])), flush=True)
    return results


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description="Check and measure every kernel on a GPU.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when to stop beginning new cases")
    parser.add_argument("--only", action="append", metavar="OP", help="this operation; can be given again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a section for docs/performance.md")
    return parser.parse_args(arguments)


def _why_not() -> str:
    """Return what this machine lacks, or nothing."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; run it on a machine with an NVIDIA GPU and its driver"
    if importlib.util.find_spec("triton") is None:
        return "Triton's language is not installed: pip install triton"
    return ""


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")
