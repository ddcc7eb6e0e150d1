"""What a device does at best: bytes a second of a copy, operations a second of a matrix product.

Knows time as something handed in. Does not know kernels.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

FLUSH_BYTES = 2**30  # more than any device keeps: writing as much empties its caches, and lets the host run ahead
FEWEST_RUNS, MOST_RUNS = 3, 50


class Timer(Protocol):
    """Measures a function."""

    def seconds(self, function: Callable[[], object], at_most: float) -> float:
        """Return the time of a run.

        Runs take about `at_most` together. One that alone takes longer counts by itself, after one to warm up.
        """
        ...


class HostTimer:
    """Times what happens on the host; of runs the fastest, since other work only ever adds."""

    def seconds(self, function: Callable[[], object], at_most: float) -> float:
        """Return the time of the fastest run."""
        function()
        first = self._run(function)
        if first > at_most:
            return first
        return min(self._run(function) for _ in range(num_runs(first, at_most)))

    @staticmethod
    def _run(function: Callable[[], object]) -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started


class CudaTimer:
    """Times what happens on a GPU, by its own clock, with nothing in its caches."""

    def __init__(self, device: torch.device) -> None:
        """Reserve what is written between runs."""
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, function: Callable[[], object], at_most: float) -> float:
        """Return the median time of a run."""
        function()
        first = self._read([self._run(function)])
        if first > at_most:
            return first
        return self._read([self._run(function) for _ in range(num_runs(first, at_most))])

    def _run(self, function: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        function()
        end.record()
        return begin, end

    @staticmethod
    def _read(runs: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> float:
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in runs) / 1000


def make_timer(device: torch.device) -> Timer:
    """Return the timer of a kind of device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


def num_runs(seconds: float, at_most: float) -> int:
    """Return how many runs that take so long fit, within bounds."""
    return min(MOST_RUNS, max(FEWEST_RUNS, int(at_most / max(seconds, 1e-9))))


@dataclass(slots=True, frozen=True)
class Ceilings:
    """What a device does at best."""

    bytes_per_second: float
    flops_per_second: float

    def floor(self, num_bytes: float, num_flops: float) -> float:
        """Return the least seconds for so much traffic and so many operations."""
        return max(num_bytes / self.bytes_per_second, num_flops / self.flops_per_second)


def measure_ceilings(device: torch.device, timer: Timer, at_most: float) -> Ceilings:
    """Copy a large tensor and multiply large matrices, bf16 on GPUs and fp32 on CPUs, each for about `at_most`.

    Numbers are random: matrices of equal ones make a GPU draw less power, and it multiplies them faster.
    """
    is_gpu = device.type == "cuda"
    source = torch.ones(2**30 if is_gpu else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = timer.seconds(lambda: target.copy_(source), at_most)
    size, dtype = (8192, torch.bfloat16) if is_gpu else (1024, torch.float32)
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    multiplied = timer.seconds(lambda: left @ right, at_most)
    return Ceilings(2 * source.numel() / copied, 2 * size**3 / multiplied)
