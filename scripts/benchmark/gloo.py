"""What two processes of this machine need to add up numbers by Gloo.

Knows torch.distributed. Does not know what is added up in a model.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from scripts.planner.devices import Link

SMALL, LARGE = 2, 1 << 20  # numbers
NUM_BYTES = 4
REPEATS = 50


def make_link(small: float, large: float) -> Link:
    """Return the link that explains the seconds of an all-reduce of few and of many bytes between two."""
    return Link(start_s=small / 2, hop_s=small / 2, bandwidth=NUM_BYTES * LARGE / max(large - small, 1e-9))


def measure_link() -> tuple[float, float]:
    """Return the seconds of an all-reduce of few and of many bytes between two processes."""
    with tempfile.TemporaryDirectory() as folder:
        context: Any = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        ranks = [context.Process(target=_rank, args=(rank, str(Path(folder) / "store"), results)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        small, large = results.get()
        for rank in ranks:
            rank.join()
    return small, large


def _rank(rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        seconds = [_all_reduce_seconds(size) for size in (SMALL, LARGE)]
        if rank == 0:
            results.put(tuple(seconds))
    finally:
        distributed.destroy_process_group()


def _all_reduce_seconds(size: int) -> float:
    numbers, seconds = torch.zeros(size), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        distributed.all_reduce(numbers)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
