"""Attention of each token over its own sequence's keys and values, read in place from their blocks.

    out[t, h] = sum_p softmax_p(scale * query[t, h] . key[p, h // G]) value[p, h // G],   p = 0 .. positions[t]

where position p of a sequence lies in block `block_tables[s, p // B]` at offset `p % B`, and G = H / K query heads
share one KV head. Prefill and decode are the same thing here: a token attends to all positions up to its own.

Contract, kept by every implementation: accumulates in fp32 or wider; reads no slot past a token's position; the result
for a token does not depend on what else is in the batch.

Source of the layout: PagedAttention (arXiv 2309.06180), section 4.
"""

from typing import Protocol

import torch

from kernels.paged_attention.cpu_kernel import paged_attention_cpu
from kernels.paged_attention.reference import paged_attention_reference

__all__ = ["PagedAttention", "paged_attention_cpu", "paged_attention_reference", "select"]


class PagedAttention(Protocol):
    """Signature of the operation."""

    def __call__(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_tables: torch.Tensor,
        token_to_seq: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [T, H, D], last dimension contiguous.
            key_cache: [N, K, B, D].
            value_cache: [N, K, B, D].
            block_tables: [S, M] int32.
            token_to_seq: [T] int32, row of `block_tables`.
            positions: [T] int32.
            scale: factor on the scores, usually D ** -0.5.

        Returns:
            [T, H, D], contiguous.
        """
        ...


def select(device: torch.device) -> PagedAttention:
    """Return the implementation for tensors on `device`."""
    return paged_attention_cpu if device.type == "cpu" else paged_attention_reference
