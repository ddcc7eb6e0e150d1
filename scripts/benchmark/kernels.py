"""`scripts/bench kernels`: every kernel against its torch reference and against what the device does at best.

Knows which cases and implementations suit the machine. Does not know operations. A case whose check fails is shown as
wrong, with no time and no speed-up.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.model_runner import set_threads
from scripts.benchmark.report import context
from scripts.kernel_cases.case import Kind, Size
from scripts.kernel_cases.ceilings import Ceilings, make_timer, measure_ceilings
from scripts.kernel_cases.report import HEADER, document, facts_of, row
from scripts.kernel_cases.survey import Result, Survey
from scripts.kernel_cases.table import all_cases

SECONDS_EACH = 0.3
IN_CACHE = "Above 100 %: what stays in a CPU's caches is faster than a copy through its memory."


def run(num_threads: int, only: Sequence[str], progress: Progress) -> tuple[Ceilings, list[Result]]:
    """Check and measure the kernels of this machine's GPU, or of its CPU where there is none."""
    device, kind, size = choose_side()
    set_threads(num_threads)
    survey = Survey(device, kind, make_timer(device), lambda: True, SECONDS_EACH)
    cases = [case for case in all_cases(size) if not only or case.op in only]
    task = progress.add_task("kernels", total=len(cases))
    ceilings = measure_ceilings(device, survey.timer, SECONDS_EACH)
    results: list[Result] = []
    for case in cases:
        results += [survey.measure(case, checked, ceilings) for checked in survey.check([case])]
        progress.advance(task)
    return ceilings, results


def choose_side() -> tuple[torch.device, Kind, Size]:
    """Return where, which implementations, and the size of cases."""
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        return torch.device("cuda"), "triton", "gpu"
    return torch.device("cpu"), "cpu", "cpu"


def show(ceilings: Ceilings, results: Sequence[Result]) -> None:
    """Print the table."""
    table = Table(title="kernels", caption=f"{facts_of(ceilings)} {IN_CACHE}")
    for column in HEADER:
        table.add_column(column, justify="left" if column in HEADER[:2] else "right")
    for result in results:
        table.add_row(*row(result))
    Console().print(table)


def save(path: Path, ceilings: Ceilings, results: Sequence[Result]) -> None:
    """Write everything as JSON, with the date, the command and the machine."""
    path.write_text(json.dumps(context() | document(ceilings, results), indent=2) + "\n", encoding="utf-8")
