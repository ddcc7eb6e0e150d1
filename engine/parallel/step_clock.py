"""How long the step that ranks compute has been going on.

Knows times and how a device tells that it has come so far. Does not know batches or ranks.

Steps are computed in their order, so only the last one needs to be looked at: where one hangs, the core launches at
most one more and then waits.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class OpenStep:
    """A step since `started`, in seconds of the monotonic clock; `has_ended` asks its device."""

    started: float
    has_ended: Callable[[], bool] = lambda: False


class StepClock:
    """Written by the thread that computes, read by the one that watches."""

    def __init__(self, device: torch.device) -> None:
        """Measure steps on `device`."""
        self._device = device
        self._last: OpenStep | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step from here until its device has done what is launched within; for ever where that fails."""
        step = self._last = OpenStep(time.monotonic())
        yield
        step.has_ended = self._mark()

    @property
    def seconds(self) -> float:
        """How long the last step has taken so far; 0 where it has ended."""
        step = self._last
        return 0.0 if step is None or step.has_ended() else time.monotonic() - step.started

    def _mark(self) -> Callable[[], bool]:
        if self._device.type == "cpu":
            return lambda: True
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event.query
