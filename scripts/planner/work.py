"""What a model has to read and compute, counted from its configuration.

Knows parameters and floating-point operations. Does not know devices or how they are divided.
"""

from dataclasses import dataclass

from engine.models.config import ModelConfig

NUM_MATRICES = 3  # of a gated feed-forward: gate, up, down


@dataclass(frozen=True, slots=True)
class Work:
    """One model's parts, in parameters.

    Attributes:
        attention: of one layer's projections.
        dense: of one layer's feed-forward, or of router and shared expert, on average over the layers.
        expert: of one expert; 0 in a dense model.
        num_sparse_layers: layers with experts.
        head: of the LM head.
        embedding: of the embedding where it is not the LM head's.
        kv_values: keys and values that one token keeps in one layer.
    """

    num_layers: int
    attention: int
    dense: float
    expert: int
    num_experts: int
    num_experts_per_token: int
    num_sparse_layers: int
    head: int
    embedding: int
    kv_values: int

    @property
    def num_parameters(self) -> float:
        """All of them."""
        experts = self.num_sparse_layers * self.num_experts * self.expert
        return self.num_layers * (self.attention + self.dense) + experts + self.head + self.embedding


def count_work(model: ModelConfig) -> Work:
    """Count a model's parts; norms and biases are left out."""
    moe = model.moe
    hidden = model.hidden_size
    num_sparse = len(moe.sparse_layers) if moe else 0
    dense = (model.num_layers - num_sparse) * NUM_MATRICES * hidden * model.intermediate_size
    if moe is not None:
        dense += num_sparse * hidden * (moe.num_experts + NUM_MATRICES * (moe.shared_intermediate_size or 0))
    return Work(
        num_layers=model.num_layers,
        attention=2 * hidden * model.head_dim * (model.num_heads + model.num_kv_heads),
        dense=dense / model.num_layers,
        expert=NUM_MATRICES * hidden * moe.intermediate_size if moe else 0,
        num_experts=moe.num_experts if moe else 0,
        num_experts_per_token=moe.num_experts_per_token if moe else 0,
        num_sparse_layers=num_sparse,
        head=model.vocab_size * hidden,
        embedding=0 if model.tie_word_embeddings else model.vocab_size * hidden,
        kv_values=2 * model.num_kv_heads * model.head_dim,
    )


def touched_experts(num_tokens: float, num_experts: int, num_chosen: int) -> float:
    """Return how many experts at least one token goes to, on average, where routing is uniform.

    A token leaves an expert out with probability 1 - A / E.
    """
    return num_experts * (1.0 - (1.0 - num_chosen / num_experts) ** num_tokens)


def context_read(context: float, windows: tuple[int | None, ...]) -> float:
    """Return how many earlier tokens a layer reads for one token, on average over the layers."""
    return sum(context if width is None else min(context, width) for width in windows) / len(windows)
