"""Attention of each token over its own sequence's keys and values, read in place from their blocks.

    out[t, h] = sum_p softmax_p(scale * query[t, h] . key[p, h // G]) value[p, h // G],   p = first .. positions[t]

where position p of a sequence lies in block `block_tables[s, p // B]` at offset `p % B`, and G = H / K query heads
share one KV head. Prefill and decode are the same thing here: a token attends to all positions up to its own, or with
a `window` W to the last W of them, its own included: first = max(0, positions[t] - W + 1).

Two more variations, applied where asked for: a score s becomes soft_cap * tanh(s / soft_cap) before the softmax; a
head's sink is one more score in its softmax, whose weight goes to no value.

Caches of int8 or float8 (e4m3) come with a scale for each slot and head, as `kernels.rope_kv_store` writes them; a key
or value is what is stored times its scale.

Contract, kept by every implementation: accumulates in fp32 or wider; reads no slot past the last position that a
sequence asks for or before the first of its windows, nor the block tables' entries there; the result for a token does
not depend on what else is in the batch (on a GPU up to rounding, see `triton_kernel.py`).

Sources: the layout, PagedAttention (arXiv 2309.06180), section 4; windows, Mistral 7B (arXiv 2310.06825), section 2;
soft caps, Gemma 2 (arXiv 2408.00118), section 2; sinks, gpt-oss (arXiv 2508.10925), section 2.
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.paged_attention.reference import paged_attention_reference

__all__ = ["PagedAttention", "paged_attention_reference", "select"]


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
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [T, H, D], last dimension contiguous.
            key_cache: [N, K, B, D].
            value_cache: [N, K, B, D].
            block_tables: [S, M] int32.
            token_to_seq: [T] int32, row of `block_tables`; never falls from token to token.
            positions: [T] int32.
            scale: factor on the scores, usually D ** -0.5.
            window: how many positions a token attends to, itself included; None for all.
            soft_cap: bound of the scores, None for no bound.
            sinks: [H] fp32, one more score for each head; None for no sinks.
            key_scales: [N, K, B] fp32, contiguous, for a quantized cache; else None.
            value_scales: the same for values.

        Returns:
            [T, H, D], contiguous.
        """
        ...


def select(device: torch.device) -> PagedAttention:
    """Return the implementation for tensors on `device`.

    Raises:
        ImportError: a CUDA device without the Triton language.
    """
    if device.type == "cuda":
        return choice.triton_kernel("paged_attention").paged_attention_triton
    if device.type == "cpu":
        return choice.cpu_kernel("paged_attention").paged_attention_cpu
    return paged_attention_reference
