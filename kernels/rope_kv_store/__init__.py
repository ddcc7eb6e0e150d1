"""Rotate queries and keys by their positions and store keys and values into their cache slots, in one pass.

For each head of a token at position p, with its first R channels in halves x1, x2 and the angles of p:

    rotated = (x1 cos - x2 sin, x2 cos + x1 sin)

Channels from R on, where a model turns only a part of them, stay as they are.

`qkv` [T, (H + 2 K) D] holds queries, keys and values side by side. Queries are rotated in place; the rotated keys and
the values go to slot `slot_mapping[t]` (block id times B plus offset) of the caches [N, K, B, D]. Caches of int8 or
float8 (e4m3) come with scales [N, K, B]; a row is quantized as `kernels.cache_quantization` says. Rotation and
quantization in fp32.

Source: RoFormer (arXiv 2104.09864), section 3.4, in the half-split layout that Hugging Face checkpoints use.
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.rope_kv_store.reference import rope_kv_store_reference

__all__ = ["RopeKVStore", "rope_kv_store_reference", "select"]


class RopeKVStore(Protocol):
    """Signature of the operation."""

    def __call__(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
    ) -> None:
        """Rotate and store.

        Args:
            qkv: [T, (H + 2 K) D], contiguous; its query part is changed in place, its key part is left undefined.
            cos_sin: [P, 2, R/2] fp32, R at most D.
            positions: [T] int32.
            slot_mapping: [T] int64.
            key_cache: [N, K, B, D], written.
            value_cache: [N, K, B, D], written.
            key_scales: [N, K, B] fp32, contiguous, written, for a quantized cache; else None.
            value_scales: the same for values.
        """
        ...


def select(device: torch.device) -> RopeKVStore:
    """Return the implementation for tensors on `device`.

    Raises:
        ImportError: a CUDA device without the Triton language.
    """
    if device.type == "cuda":
        return choice.triton_kernel("rope_kv_store").rope_kv_store_triton
    return choice.cpu_kernel("rope_kv_store").rope_kv_store_cpu if device.type == "cpu" else rope_kv_store_reference
