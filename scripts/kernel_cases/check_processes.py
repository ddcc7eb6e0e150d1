"""Checking a GPU's cases in several processes: most of a check's time goes into compiling, which takes one core each.

Knows cases by their names, and that the compiler keeps what it made on disk, where later processes find it.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import torch

from scripts.kernel_cases.case import Case, Size
from scripts.kernel_cases.ceilings import HostTimer
from scripts.kernel_cases.survey import Result, Survey
from scripts.kernel_cases.table import all_cases

MOST_JOBS = 8
BYTES_EACH = 16 * 2**30  # of the device's memory: attention to 8,192 positions in the reference's fp32


def default_jobs(device: torch.device) -> int:
    """Return for how many processes this machine has cores and its GPU memory."""
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, min(MOST_JOBS, len(os.sched_getaffinity(0)) // 2, memory // BYTES_EACH))


def check_in_processes(
    size: Size, cases: Sequence[Case], device: torch.device, num_jobs: int, deadline: float
) -> Iterator[Result]:
    """Check cases of one size in so many processes and yield results in order; `deadline` is of `time.monotonic`."""
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use its parent's GPU
    with ProcessPoolExecutor(num_jobs, mp_context=spawn) as pool:
        pending = [pool.submit(_check, size, case.name, device, deadline) for case in cases]
        for future in pending:
            yield from future.result()


def _check(size: Size, name: str, device: torch.device, deadline: float) -> list[Result]:
    survey = Survey(device, "triton", HostTimer(), lambda: time.monotonic() < deadline, 0.0)
    return list(survey.check([_by_name(size)[name]]))


@cache
def _by_name(size: Size) -> dict[str, Case]:
    return {case.name: case for case in all_cases(size)}
