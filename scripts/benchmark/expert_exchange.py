"""What the two ways to send tokens to experts on other ranks cost on this machine's network.

Run as `python -m scripts.benchmark.expert_exchange --groups 4`. Knows the ways; the experts answer at once, since both
ways compute the same. `engine.parallel.exchange_rule` was made from what this prints.
"""

import multiprocessing
import statistics
import time
from typing import Annotated

import torch
import typer

from engine.model_runner import set_threads
from engine.parallel.collectives import connect_store, join_ranks, open_store
from engine.parallel.config import ParallelConfig, Place
from engine.parallel.executor import Invitation
from engine.parallel.experts import ParallelDispatch
from engine.parallel.placement import place_evenly
from kernels import expert_dispatch

HOST = "127.0.0.1"
EXPERTS_A_GROUP = 2
ROUNDS, WARM_UP = 15, 3
SIZES = [4**power for power in range(6)]
TIMEOUT = 300.0
INVITATION = Invitation(HOST, 0, bytes(32))  # of ranks that nobody else meets
CPU = torch.device("cpu")
Row = tuple[int, float, float]


def measure(place: Place, port: int, hidden: int, chosen: int) -> list[Row]:
    """Time both ways as one of the ranks; return tokens and the median milliseconds of each."""
    set_threads(1)
    num_groups = place.config.ep
    ranks = join_ranks(place, connect_store(HOST, port, num_groups), INVITATION, CPU, TIMEOUT)
    placement = place_evenly(EXPERTS_A_GROUP * num_groups, num_groups)
    dispatch = ParallelDispatch(placement, place, ranks, expert_dispatch.select(CPU), CPU)
    experts = [torch.neg] * EXPERTS_A_GROUP
    generator = torch.Generator().manual_seed(0)
    results: list[Row] = []
    for size in SIZES:
        rows = torch.randn(size, hidden, generator=generator)
        ids = torch.rand(size, EXPERTS_A_GROUP * num_groups, generator=generator).topk(chosen, dim=1).indices
        weights, owners = torch.full((size, chosen), 1 / chosen), dispatch.owners(ids)
        seconds: dict[str, list[float]] = {"sum": [], "exchange": []}
        for _ in range(WARM_UP + ROUNDS):
            for name, way in (("sum", dispatch.by_sum), ("exchange", dispatch.by_exchange)):
                ranks.sum_all(torch.zeros(1))  # all begin together
                started = time.perf_counter()
                way(rows, ids, weights, experts, owners)
                seconds[name].append(time.perf_counter() - started)
        by_sum, by_exchange = (1000 * statistics.median(each[WARM_UP:]) for each in seconds.values())
        results.append((size, by_sum, by_exchange))
    ranks.leave()
    return results


def main(
    groups: Annotated[int, typer.Option(min=2, help="Expert groups, a process each.")] = 4,
    hidden: Annotated[int, typer.Option(min=1, help="Channels of a token.")] = 2048,
    chosen: Annotated[int, typer.Option(min=1, help="Experts that a token goes to.")] = 1,
) -> None:
    """Print milliseconds of both ways for 1 to 1,024 tokens."""
    store = open_store(HOST, groups)
    places = [Place(ParallelConfig(ep=groups), rank) for rank in range(groups)]
    print(f"{groups} groups, {hidden} channels, {chosen} experts a token; median milliseconds of {ROUNDS}")
    with multiprocessing.get_context("spawn").Pool(groups) as pool:
        results = pool.starmap(measure, [(place, store.port, hidden, chosen) for place in places], chunksize=1)
    for tokens, by_sum, by_exchange in results[0]:
        print(f"{tokens:5d} tokens: sum {by_sum:8.2f}, exchange {by_exchange:8.2f}")


if __name__ == "__main__":
    typer.run(main)
