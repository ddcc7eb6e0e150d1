"""What two processes of this machine need to add up numbers, as ranks do.

Knows the collectives. Does not know what is added up in a model.
"""

import multiprocessing
import time

import torch

from engine.model_runner import set_threads
from engine.parallel.collectives import Collectives, connect_store, join_ranks, open_store
from engine.parallel.config import ParallelConfig, Place
from engine.parallel.executor import Invitation
from scripts.planner.devices import Link

SMALL, LARGE = 256, 1 << 20  # numbers
NUM_BYTES = 4
NUM_RANKS, REPEATS, TIMEOUT = 2, 50, 60.0
CPU = torch.device("cpu")
INVITATION = Invitation("127.0.0.1", 0, bytes(32))  # of ranks that nobody else meets


def make_link(small: float, large: float) -> Link:
    """Return the link that explains the seconds of a sum of few and of many bytes over two ranks."""
    return Link(start_s=small / 2, hop_s=small / 2, bandwidth=NUM_BYTES * LARGE / max(large - small, 1e-9))


def measure_link() -> tuple[float, float]:
    """Return the seconds of a sum of few and of many numbers over two ranks, one thread each."""
    store = open_store(INVITATION.host, NUM_RANKS)
    with multiprocessing.get_context("spawn").Pool(NUM_RANKS) as pool:
        seen = pool.starmap(_rank, [(rank, store.port) for rank in range(NUM_RANKS)], chunksize=1)
    return seen[0]


def _rank(rank: int, port: int) -> tuple[float, float]:
    set_threads(1)
    place = Place(ParallelConfig(tp=NUM_RANKS), rank)
    ranks = join_ranks(place, connect_store(INVITATION.host, port, NUM_RANKS), INVITATION, CPU, TIMEOUT)
    seconds = _sum_seconds(ranks, SMALL), _sum_seconds(ranks, LARGE)
    ranks.leave()
    return seconds


def _sum_seconds(ranks: Collectives, size: int) -> float:
    numbers, seconds = torch.zeros(1, size), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ranks.sum_all(numbers)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
