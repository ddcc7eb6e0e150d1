"""Checking and measuring cases within a time.

Knows cases, a timer and a clock that it is handed. Does not know how results are shown.

Invariants:
1. A case whose check fails has no time, no share of a ceiling and no speed-up.
2. All cases are checked before any is measured; what no time is left for says so.
"""

import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from scripts.kernel_cases.case import Case, Kind
from scripts.kernel_cases.ceilings import Ceilings, Timer

OUT_OF_TIME = "no time was left"
logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Result:
    """What became of a case.

    Attributes:
        op: the operation.
        name: of the case.
        kind: of the implementation.
        problem: why it is not checked or measured; empty where all is well.
        is_correct: whether its check passed.
        seconds: a run's.
        reference_seconds: a run's of the torch reference.
        floor_seconds: the least that traffic and operations allow, by ceilings measured in the same run.
        rate: bytes or operations a second, whichever bounds the case.
        unit: of the rate.
    """

    op: str
    name: str
    kind: Kind
    problem: str = ""
    is_correct: bool = False
    seconds: float | None = None
    reference_seconds: float | None = None
    floor_seconds: float | None = None
    rate: float | None = None
    unit: str = ""

    @property
    def verdict(self) -> str:
        """What the check said, in a word."""
        return "right" if self.is_correct else "not checked" if self.problem == OUT_OF_TIME else "WRONG"

    @property
    def share(self) -> float | None:
        """The floor's share of the time: 1 is as fast as the device can be."""
        return None if self.seconds is None or self.floor_seconds is None else self.floor_seconds / self.seconds

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as the reference."""
        return None if self.seconds is None or self.reference_seconds is None else self.reference_seconds / self.seconds


@dataclass(slots=True, frozen=True)
class Survey:
    """How to check and measure.

    Attributes:
        device: where.
        kind: of the implementations.
        timer: measures.
        is_time_left: whether another step may begin.
        seconds_each: for measuring one implementation of one case.
    """

    device: torch.device
    kind: Kind
    timer: Timer
    is_time_left: Callable[[], bool]
    seconds_each: float

    def check(self, cases: Sequence[Case]) -> Iterator[Result]:
        """Yield one result for each case that has an implementation of the kind."""
        for case in cases:
            implementation = case.implementation(self.kind)
            if implementation is not None:
                yield self._check(case, implementation) if self.is_time_left() else self._result(case, OUT_OF_TIME)

    def measure(self, case: Case, result: Result, ceilings: Ceilings) -> Result:
        """Return the result of a checked case with its times, if it is correct and time is left."""
        if not result.is_correct:
            return result
        if not self.is_time_left():
            return replace(result, problem=OUT_OF_TIME)
        seconds = self.seconds(case, self.kind)
        by_memory = case.num_bytes / ceilings.bytes_per_second >= case.num_flops / ceilings.flops_per_second
        return replace(
            result,
            seconds=seconds,
            reference_seconds=self.seconds(case, "reference"),
            floor_seconds=ceilings.floor(case.num_bytes, case.num_flops),
            rate=(case.num_bytes if by_memory else case.num_flops) / seconds,
            unit="byte/s" if by_memory else "FLOP/s",
        )

    def _check(self, case: Case, implementation: Callable[..., object]) -> Result:
        try:
            case.verify(implementation, self.device)
        except Exception as error:  # noqa: BLE001 - a compiler or a device may raise anything; the result carries it
            return self._result(case, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        finally:
            self._tidy()
        return replace(self._result(case, ""), is_correct=True)

    def seconds(self, case: Case, kind: Kind) -> float:
        """Return the time of a run; infinity where it fails."""
        inputs, implementation = case.make(self.device), case.implementation(kind)
        try:
            return self.timer.seconds(lambda: case.run(implementation, *inputs), self.seconds_each)
        except Exception:  # a compiler or a device may raise anything, such as too little shared memory
            logger.exception("%s of %s fails", kind, case.name)
            return math.inf
        finally:
            self._tidy()

    def _result(self, case: Case, problem: str) -> Result:
        return Result(case.op, case.name, self.kind, problem)

    def _tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
