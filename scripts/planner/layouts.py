"""How a number of devices can be divided among replicas, tensor-parallel and expert-parallel ranks.

Knows counts. Does not know devices' rates or what a layout costs.

A replica is a grid of tp x ep ranks, as in `engine.parallel.config`: all ranks see all tokens between layers, and each
half of a layer ends in one all-reduce.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.parallel.config import ParallelConfig
from engine.parallel.shares import head_share


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """Replicas of tp x ep ranks each."""

    replicas: int
    tp: int
    ep: int = 1

    @property
    def num_ranks(self) -> int:
        """Ranks of one replica."""
        return self.tp * self.ep

    @property
    def name(self) -> str:
        """How the layout is called: `2 x tp4`, `tp2 ep4`, `8 x one`."""
        parts = [f"{kind}{ways}" for kind, ways in (("tp", self.tp), ("ep", self.ep)) if ways > 1]
        shape = " ".join(parts) or "one"
        return shape if self.replicas == 1 else f"{self.replicas} x {shape}"


def all_layouts(num_devices: int) -> Iterator[Layout]:
    """Yield every layout that uses all devices, few wide replicas first."""
    for num_ranks in sorted(_divisors(num_devices), reverse=True):
        for ep in sorted(_divisors(num_ranks)):
            yield Layout(num_devices // num_ranks, num_ranks // ep, ep)


def refusal(layout: Layout, model: ModelConfig) -> str | None:
    """Return why the engine cannot lay the model out like this, None where it can; memory is another matter."""
    try:
        ParallelConfig(layout.tp, layout.ep).check(model)
    except ModelError as error:
        return str(error)
    return None


def head_shares(model: ModelConfig, num_ranks: int) -> tuple[float, float]:
    """Return the parts of query heads and of key/value heads that the rank with most of them has."""
    queries, kvs = model.num_heads, model.num_kv_heads
    shares = [head_share(queries, kvs, num_ranks, rank) for rank in range(num_ranks)]
    return max(len(each.queries) for each in shares) / queries, max(len(each.kvs) for each in shares) / kvs


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
