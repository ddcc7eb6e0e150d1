"""How many ranks a model is spread over, and in what shape.

Knows numbers and what a model's sizes allow. Does not know processes, tensors or machines.

Ranks form a grid: rank = expert group * tp + place in the group. Attention, dense feed-forwards, the embedding and the
head are split over all tp * ep ranks. Experts are dealt out to the ep groups, and the tp ranks of a group split each of
its experts. So every rank sees all tokens between layers, and a dense model takes no ep.

Sources: tensor parallelism, Megatron-LM (arXiv 1909.08053); expert parallelism, GShard (arXiv 2006.16668).
"""

from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.parallel.shares import even_share, head_share


@dataclass(slots=True, frozen=True)
class ParallelConfig:
    """The grid of ranks.

    Attributes:
        tp: ranks that split one tensor, or one expert.
        ep: groups of ranks, each with experts of its own.
    """

    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        """Check the numbers alone.

        Raises:
            ModelError: one is below 1.
        """
        for name, value in (("tensor_parallel", self.tp), ("expert_parallel", self.ep)):
            if value < 1:
                raise ModelError(f"{name} must be at least 1, got {value}")

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        return self.tp * self.ep

    def check(self, model: ModelConfig) -> None:
        """Check that every rank gets a part of everything that is split; parts may be uneven.

        Raises:
            ModelError: a size of the model is smaller than the number of its parts, or a dense model is given ep.
        """
        moe = model.moe
        if self.ep > 1 and moe is None:
            raise ModelError(f"expert_parallel is {self.ep}, but the model has no experts; use tensor_parallel")
        sizes = {"query heads": model.num_heads, "tokens in its vocabulary": model.vocab_size}
        if moe is None or len(moe.sparse_layers) < model.num_layers:
            sizes["feed-forward channels"] = model.intermediate_size
        if moe is not None and moe.shared_intermediate_size is not None:
            sizes["channels in the shared expert"] = moe.shared_intermediate_size
        for what, size in sizes.items():
            self._require(what, size, self.num_ranks, "tensor_parallel x expert_parallel")
        if moe is not None:
            self._require("channels in an expert", moe.intermediate_size, self.tp, "tensor_parallel")
            self._require("experts", moe.num_experts, self.ep, "expert_parallel")

    def max_kv_heads(self, model: ModelConfig) -> int:
        """Return the most key/value heads that any rank holds."""
        shares = (head_share(model.num_heads, model.num_kv_heads, self.num_ranks, r) for r in range(self.num_ranks))
        return max(len(share.kvs) for share in shares)

    @staticmethod
    def _require(what: str, size: int, parts: int, name: str) -> None:
        if size < parts:
            raise ModelError(f"{name} is {parts}, but the model has {size} {what}; every rank needs at least one")


@dataclass(slots=True, frozen=True)
class Place:
    """One rank's place in the grid."""

    config: ParallelConfig
    rank: int

    @property
    def tp_rank(self) -> int:
        """Place in the expert group."""
        return self.rank % self.config.tp

    @property
    def ep_rank(self) -> int:
        """Which expert group."""
        return self.rank // self.config.tp

    def share(self, size: int) -> range:
        """Return this rank's part of what is split over all ranks."""
        return even_share(size, self.config.num_ranks, self.rank)

    def expert_share(self, size: int) -> range:
        """Return this rank's part of what is split within an expert."""
        return even_share(size, self.config.tp, self.tp_rank)
