"""Sizes of a mixture of experts. Knows numbers only."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class MoEConfig:
    """The experts of a model's sparse layers.

    Attributes:
        num_experts_per_token: how many of the experts each token goes to.
        intermediate_size: width of one expert.
        norm_topk: whether the weights of a token's experts are scaled to sum to one.
        sparse_layers: indices of the layers that have experts; the others have a dense feed-forward.
        shared_intermediate_size: width of the expert that every token goes to, None for no such expert.
    """

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    norm_topk: bool
    sparse_layers: frozenset[int]
    shared_intermediate_size: int | None = None
