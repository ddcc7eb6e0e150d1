"""Layers of which each rank holds a part, around the plain layer that holds it.

Knows how the parts' answers become one. Does not know models. The plain layer inside may be packed or quantized.

Column-parallel layers need no class: each rank's answer is the part of it that its next layer reads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine.parallel.collectives import Collectives


class RowParallel(nn.Module):
    """A linear layer whose inputs are spread over the ranks: the sum of their answers."""

    def __init__(self, inner: nn.Module, ranks: Collectives) -> None:
        """Wrap the local part, which has the bias on one rank only."""
        super().__init__()
        self.inner = inner
        self.ranks = ranks

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map the local part of [T, F] to [T, C]."""
        return self.ranks.sum_all(self.inner(inputs))


class VocabularyParallelEmbedding(nn.Module):
    """An embedding whose tokens are spread over the ranks; every rank answers for its own, and zero for others."""

    def __init__(self, inner: nn.Embedding, tokens: range, ranks: Collectives) -> None:
        """Wrap the rows of these tokens."""
        super().__init__()
        self.inner = inner
        self.tokens = tokens
        self.ranks = ranks

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [T] to [T, C]."""
        is_other = (token_ids < self.tokens.start) | (token_ids >= self.tokens.stop)
        local = (token_ids - self.tokens.start).masked_fill_(is_other, 0)
        return self.ranks.sum_all(self.inner(local).masked_fill_(is_other.unsqueeze(-1), 0.0))


class GatheredHead(nn.Module):
    """A head whose tokens are spread over the ranks; rank 0 gets all logits, others none."""

    def __init__(self, inner: nn.Module, sizes: list[int], ranks: Collectives) -> None:
        """Wrap the local part; `sizes` are the numbers of tokens of all ranks, the first the largest."""
        super().__init__()
        self.inner = inner
        self.sizes = sizes
        self.ranks = ranks

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [R, C] to [R, V] on rank 0, and to [R, 0] on others."""
        local = self.inner(hidden)
        if not len(local):
            return local.new_empty(0, sum(self.sizes))
        parts = self.ranks.gather(F.pad(local, (0, self.sizes[0] - local.shape[1])))
        if parts is None:
            return local[:, :0]
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes, strict=True)], dim=1)
