"""Computing a step so that a failure costs only the sequences that cause it.

Knows plans and the runner. Does not know what a sequence means to anybody.

A step may be computed again: it writes the same keys and values to the same places, and the runner changes nothing else
before it has succeeded. So a step that fails is computed in halves, and these in halves, down to the sequences that
fail alone. A step that was too large for the memory succeeds in parts.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from engine.errors import EngineError, RanksFailed, RequestFailed
from engine.sequence import Sequence
from engine.step_plan import StepPlan
from engine.step_run import PendingStep, StepRun

Run = TypeVar("Run", StepRun, PendingStep)
logger = logging.getLogger(__name__)


def run_isolated(
    run: Callable[[StepPlan], Run], plan: StepPlan
) -> tuple[list[Run], list[tuple[Sequence, EngineError]]]:
    """Compute a step and return its parts that succeeded, and which sequences failed and why.

    Raises:
        torch.AcceleratorError: the device has failed, and nothing can be computed any more.
        RanksFailed: the same of a rank.
    """
    done: list[Run] = []
    failures: list[tuple[Sequence, EngineError]] = []
    todo = [plan]
    while todo:
        part = todo.pop()
        try:
            done.append(run(part))
            continue
        except (torch.AcceleratorError, RanksFailed):
            raise
        except Exception as error:  # its traceback holds the step's tensors: they must be gone before the next try
            reason = RequestFailed(f"the model could not be computed: {_describe(error)}")
            is_alone = len(part.scheduled) == 1
            logger.error("a step of %d sequences failed: %s", len(part.scheduled), reason, exc_info=is_alone)
        if is_alone:
            failures.append((part.scheduled[0].sequence, reason))
        else:
            todo += part.halves()
    return done, failures


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    return repr(error)
