"""Whole engines on this machine's GPU, one after the other, while time is left.

Knows names of measurements. Does not know kernels, nor how a result is shown. What fails is an outcome of its own, so
that the next one is measured all the same.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from scripts.benchmark.report import Report
from scripts.benchmark.shapes import Sizes, run
from scripts.kernel_cases.gpu_check import WHOLE_PATH
from scripts.kernel_cases.survey import OUT_OF_TIME

WHOLE_PATH_ROUNDS = 3  # the first one is slower: the device's libraries load their kernels in it


@dataclass(slots=True, frozen=True)
class Outcome:
    """A report, or why there is none.

    Attributes:
        name: of the measurement.
        report: what was measured.
        problem: why nothing was; empty where it was.
        is_failure: whether that is more than something this machine lacks, or time.
    """

    name: str
    report: Report | None = None
    problem: str = ""
    is_failure: bool = False


class Lines:
    """Progress as lines of text."""

    def add_task(self, description: str, /, *, total: float) -> str:
        """Say what begins."""
        print(f"measuring  {description}, in {total:.0f} parts", flush=True)
        return description

    def advance(self, task_id: str, /) -> None:
        """Say that a part is done."""
        print(f"measured a part of {task_id}", flush=True)


def measure_engines(
    names: Sequence[str], is_time_left: Callable[[], bool], sizes: Sizes, **options: Any
) -> Iterator[Outcome]:
    """Measure shapes, and the whole path beside the engine alone; options are those of both."""
    for name in names:
        try:
            yield _measure(name, sizes, options) if is_time_left() else Outcome(name, problem=OUT_OF_TIME)
        except ImportError as error:
            yield Outcome(name, problem=f"this machine lacks it: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are measured
            yield Outcome(
                name, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", is_failure=True
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(name: str, sizes: Sizes, options: dict[str, Any]) -> Outcome:
    if name == WHOLE_PATH:
        return Outcome(name, _whole_path(options))
    with TemporaryDirectory() as folder:
        return Outcome(name, run(name, Path(folder), Lines(), sizes=sizes, **options))


def _whole_path(options: dict[str, Any]) -> Report:
    """Measure the engine alone beside engine, Triton and gateway, on a model of 135M random weights in bfloat16.

    Raises:
        ImportError: what the gateway needs is not installed, or there is no tritonserver.
    """
    from scripts.benchmark import endpoint
    from scripts.benchmark.command import random_model
    from scripts.launcher.errors import LaunchError
    from scripts.launcher.tritonserver import find_tritonserver

    try:
        find_tritonserver(install=False)
    except LaunchError as error:
        raise ImportError(str(error)) from None
    return endpoint.run(random_model(), len(os.sched_getaffinity(0)), WHOLE_PATH_ROUNDS, Lines(), **options)
