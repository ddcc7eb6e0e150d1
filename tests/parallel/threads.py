"""Ranks as threads of one process: the collectives by a barrier and a shared table, for tests of what ranks compute."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from engine.batch import Batch, build_batch
from engine.config import EngineConfig
from engine.model_runner import ModelRunner, set_threads
from engine.models.config import ModelConfig
from engine.parallel.config import ParallelConfig, Place
from engine.parallel.follower import Follower
from engine.parallel.leader import rank_config
from engine.parallel.member import Member
from engine.parallel.placement import placements_for
from engine.parallel.step_message import AdapterName, encode_adapters, encode_step
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence, StepPlan
from engine.step_shapes import StepShape

TIMEOUT = 60.0


@dataclass
class Table:
    """What all ranks see: one value of each."""

    config: ParallelConfig
    values: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.config.num_ranks, timeout=TIMEOUT)

    def swap(self, rank: int, value: Any) -> dict[int, Any]:
        """Return every rank's value once all have given theirs."""
        self.values[rank] = value
        self.barrier.wait()
        seen = dict(self.values)
        self.barrier.wait()
        return seen


@dataclass
class ThreadCollectives:
    """One thread's operations."""

    table: Table
    place: Place
    num_exchanges: int = 0

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        return self._sum(values, range(self.place.config.num_ranks))

    def sum_within(self, values: torch.Tensor) -> torch.Tensor:
        return self._sum(values, self._group)

    def largest_all(self, values: torch.Tensor) -> torch.Tensor:
        return self._largest(values, range(self.place.config.num_ranks))

    def largest_within(self, values: torch.Tensor) -> torch.Tensor:
        return self._largest(values, self._group)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        seen = self.table.swap(self.place.rank, values.clone())
        return [seen[rank] for rank in sorted(seen)] if self.place.rank == 0 else None

    def exchange(self, rows: torch.Tensor, sends: list[int], takes: list[int]) -> torch.Tensor:
        self.num_exchanges += 1
        seen = self.table.swap(self.place.rank, rows.clone().split(sends))
        taken = [seen[peer][self.place.ep_rank] for peer in self._peers()]
        assert [len(part) for part in taken] == takes
        return torch.cat(taken)

    def join(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        seen = self.table.swap(self.place.rank, rows.clone())
        parts = [seen[peer] for peer in self._peers()]
        assert [len(part) for part in parts] == counts
        return torch.cat(parts)

    def smallest(self, value: int) -> int:
        return min(self.table.swap(self.place.rank, value).values())

    def _peers(self) -> list[int]:
        tp, ep = self.place.config.tp, self.place.config.ep
        return [group * tp + self.place.tp_rank for group in range(ep)]

    @property
    def _group(self) -> range:
        tp = self.place.config.tp
        return range(self.place.ep_rank * tp, (self.place.ep_rank + 1) * tp)

    def _largest(self, values: torch.Tensor, ranks: range) -> torch.Tensor:
        seen = self.table.swap(self.place.rank, values.clone())
        return values.copy_(torch.stack([seen[rank] for rank in ranks]).amax(dim=0))

    def _sum(self, values: torch.Tensor, ranks: range) -> torch.Tensor:
        seen = self.table.swap(self.place.rank, values.clone())
        return values.copy_(torch.stack([seen[rank] for rank in ranks]).sum(dim=0))


class ThreadRanks:
    """All ranks of a model, each a runner of its own."""

    def __init__(self, config: EngineConfig) -> None:
        self.model_config = ModelConfig.from_dir(config.model)
        self.config = rank_config(config, self.model_config)
        config.parallel.check(self.model_config)
        table = Table(config.parallel)
        self.collectives = [ThreadCollectives(table, Place(config.parallel, r)) for r in range(table.config.num_ranks)]
        self.runners = [self._runner(each) for each in self.collectives]

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return rank 0's logits after each token of one sequence computed in one step, [T, V]."""
        with ThreadPoolExecutor(len(self.runners), initializer=set_threads, initargs=(1,)) as pool:
            jobs = [pool.submit(runner.compute, whole_batch(token_ids, runner)) for runner in self.runners]
            (logits, _), *_ = [job.result() for job in jobs]
            return logits

    def _runner(self, collectives: ThreadCollectives) -> ModelRunner:
        member = Member(collectives.place, collectives, placements_for(self.config, self.model_config))
        return ModelRunner(self.config, self.model_config, member)


def whole_batch(token_ids: list[int], runner: ModelRunner) -> Batch:
    """Return the batch of one sequence all of whose tokens want logits."""
    table = list(range(-(-len(token_ids) // runner.block_size)))
    params = SamplingParams(max_tokens=1)
    sequence = Sequence(0, token_ids, len(token_ids), params, len(token_ids) + 1, frozenset(), block_table=table)
    batch = build_batch(StepPlan([ScheduledSequence(sequence, len(token_ids))], len(token_ids)), runner.block_size)
    return replace(batch, logits_indices=torch.arange(len(token_ids)))


def one_rank(config: EngineConfig) -> EngineConfig:
    """Return the same without other ranks."""
    return replace(config, tensor_parallel=1, expert_parallel=1, expert_replicas=0)


class ThreadLeader:
    """Stands in for `RankLeader`: the other ranks are threads that compute what they are told."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig, *, is_fresh: bool = False) -> None:
        assert not is_fresh
        shared = rank_config(config, model_config)
        table = Table(config.parallel)
        places = [Place(config.parallel, rank) for rank in range(config.parallel.num_ranks)]
        self.collectives = [self.make_collectives(table, place) for place in places]
        first, *others = [
            Member(place, collectives, placements_for(config, model_config))
            for place, collectives in zip(places, self.collectives, strict=True)
        ]
        self.config = self.config_of(0, shared)
        self.member = replace(first, step=self._step)
        self.followers: list[Follower] = []
        self._steps = [queue.SimpleQueue[bytes]() for _ in others]
        self._pool = ThreadPoolExecutor(len(others), initializer=set_threads, initargs=(1,))
        self._jobs = [
            self._pool.submit(self.serve, self.config_of(member.place.rank, shared), model_config, member, steps)
            for member, steps in zip(others, self._steps, strict=True)
        ]

    def make_collectives(self, table: Table, place: Place) -> Any:
        """Return what a rank does with others."""
        return ThreadCollectives(table, place)

    def config_of(self, rank: int, config: EngineConfig) -> EngineConfig:
        """Return what a rank is told."""
        del rank
        return config

    def close(self) -> None:
        for steps in self._steps:
            steps.put(b"")
        self.failures = [job.exception(TIMEOUT) for job in self._jobs]
        self._pool.shutdown()

    def serve(
        self, config: EngineConfig, model_config: ModelConfig, member: Member, steps: "queue.SimpleQueue[bytes]"
    ) -> None:
        """Be a rank."""
        runner = ModelRunner(config, model_config, member)
        runner.warm_up()
        follower = Follower(config, runner)
        self.followers.append(follower)
        while message := steps.get():
            follower.take(message)

    def prepare(self, adapters: list[AdapterName]) -> None:
        for steps in self._steps:
            steps.put(encode_adapters(adapters))

    @contextmanager
    def _step(self, batch: Batch, graph_shape: StepShape | None) -> Iterator[None]:
        for steps in self._steps:
            steps.put(encode_step(batch, graph_shape))
        yield
