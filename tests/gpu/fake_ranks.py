"""Ranks as threads, each on a stand-in device of its own, with collectives that are launched there as NCCL's are."""

import queue
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from engine.config import EngineConfig
from engine.models.config import ModelConfig
from engine.parallel.config import Place
from engine.parallel.member import Member
from tests.gpu.fake_cuda import FakeCuda, here
from tests.parallel.threads import Table, ThreadCollectives, ThreadLeader


class FakeNccl:
    """One rank's operations on tensors of its device; they are recorded with what else is launched.

    Attributes:
        launched: how often each was called.
        computed: how often each was computed, by a call or within a graph.
    """

    def __init__(self, table: Table, place: Place) -> None:
        self._ranks = ThreadCollectives(table, place)
        self.launched: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        return self._launch("sum_all", self._ranks.sum_all, values)

    def sum_within(self, values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("only behind an exchange")

    def largest_all(self, values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("only on CPUs")

    largest_within = largest_all

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        return self._launch("gather", self._ranks.gather, values)

    def exchange(self, rows: torch.Tensor, sends: list[int], takes: list[int]) -> torch.Tensor:
        raise AssertionError("numbers of rows would have to be read from the device")

    def join(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        raise AssertionError("only behind an exchange")

    def smallest(self, value: int) -> int:
        return self._ranks.smallest(value)

    def _launch(self, name: str, operation: Callable[[torch.Tensor], Any], values: torch.Tensor) -> Any:
        def compute(raw: torch.Tensor) -> Any:
            self.computed[name] += 1
            return operation(raw)

        self.launched[name] += 1
        assert values.is_contiguous(), f"{name} of a tensor with gaps"
        return here().kernel(compute)(values)


class DeviceLeader(ThreadLeader):
    """Stands in for `RankLeader`; rank i is a thread on device i, rank 0 the caller's.

    Attributes:
        fakes: the devices of the other ranks.
        collectives: those of all ranks.
        free_bytes: what the last rank's device has free.
    """

    free_bytes: int | None = None
    collectives: list[FakeNccl]

    def __init__(self, config: EngineConfig, model_config: ModelConfig, *, is_fresh: bool = False) -> None:
        self.fakes = [FakeCuda(rank) for rank in range(1, config.parallel.num_ranks)]
        if self.free_bytes is not None:
            self.fakes[-1].free_bytes = self.free_bytes
        super().__init__(config, model_config, is_fresh=is_fresh)

    def make_collectives(self, table: Table, place: Place) -> FakeNccl:
        return FakeNccl(table, place)

    def config_of(self, rank: int, config: EngineConfig) -> EngineConfig:
        return replace(config, device=f"{config.device}:{rank}")

    def serve(
        self, config: EngineConfig, model_config: ModelConfig, member: Member, steps: "queue.SimpleQueue[bytes]"
    ) -> None:
        with self.fakes[member.place.rank - 1]:
            super().serve(config, model_config, member, steps)
