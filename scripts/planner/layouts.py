"""How a number of devices can be divided among replicas, tensor-parallel and expert-parallel ranks.

Knows counts. Does not know devices' rates or what a layout costs.

A replica is a grid of tp x ep ranks. Attention, embeddings, the LM head and dense feed-forwards are split over all of
them; experts are dealt out over ep groups, each expert split over tp ranks. So all ranks see all tokens between layers,
and each half of a layer ends in one all-reduce.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine.models.config import ModelConfig


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
    """Return why the model cannot be laid out like this, None where it can; memory is another matter."""
    moe = model.moe
    if layout.ep > 1 and moe is None:
        return "the model has no experts to deal out"
    if moe is not None and layout.ep > moe.num_experts:
        return f"{moe.num_experts} experts for {layout.ep} groups"
    if layout.num_ranks > model.num_heads:
        return f"{model.num_heads} query heads for {layout.num_ranks} ranks"
    return None


def head_shares(model: ModelConfig, num_ranks: int) -> tuple[float, float]:
    """Return the parts of query heads and of key/value heads that the rank with most of them has.

    Key/value heads are dealt out with their query heads while there are enough; else several ranks hold a copy of one
    and share its query heads.
    """
    queries, kvs = model.num_heads, model.num_kv_heads
    if num_ranks <= kvs:
        part = math.ceil(kvs / num_ranks) / kvs
        return part, part
    return math.ceil(queries // kvs / (num_ranks // kvs)) / queries, 1 / kvs


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
