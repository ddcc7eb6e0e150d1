"""Rotary embedding and KV store for CPUs, compiled by numba; one work item is one token. fp32 throughout."""

from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.rope_kv_store.reference import rope_kv_store_reference

PARALLEL_FROM = 16  # tokens; below, waking the other threads costs more than they save


def rope_kv_store_cpu(
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
    """Rotate and store fp32 CPU tensors; see the contract in `kernels.rope_kv_store`.

    Into a quantized cache the reference does it.
    """
    if key_scales is not None:
        scales = {"key_scales": key_scales, "value_scales": value_scales}
        rope_kv_store_reference(qkv, cos_sin, positions, slot_mapping, key_cache, value_cache, **scales)
        return
    heads = qkv.view(qkv.shape[0], -1, key_cache.shape[3])
    kernel = _on_all_threads if len(heads) >= PARALLEL_FROM else _on_one_thread
    kernel(
        heads.numpy(),
        cos_sin.numpy(),
        positions.numpy(),
        slot_mapping.numpy(),
        key_cache.numpy(),
        value_cache.numpy(),
    )


def _rotate_and_store(heads: Any, cos_sin: Any, positions: Any, slots: Any, key_cache: Any, value_cache: Any):
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    num_queries = heads.shape[1] - 2 * num_kv_heads
    half = cos_sin.shape[2]
    for token in numba.prange(heads.shape[0]):
        block, offset = slots[token] // block_size, slots[token] % block_size
        cos, sin = cos_sin[positions[token], 0], cos_sin[positions[token], 1]
        for head in range(num_queries):
            for d in range(half):
                x1, x2 = heads[token, head, d], heads[token, head, half + d]
                heads[token, head, d] = x1 * cos[d] - x2 * sin[d]
                heads[token, head, half + d] = x2 * cos[d] + x1 * sin[d]
        for head in range(num_kv_heads):
            for d in range(half):
                x1, x2 = heads[token, num_queries + head, d], heads[token, num_queries + head, half + d]
                key_cache[block, head, offset, d] = x1 * cos[d] - x2 * sin[d]
                key_cache[block, head, offset, half + d] = x2 * cos[d] + x1 * sin[d]
            for d in range(2 * half, head_dim):
                key_cache[block, head, offset, d] = heads[token, num_queries + head, d]
            for d in range(head_dim):
                value_cache[block, head, offset, d] = heads[token, num_queries + num_kv_heads + head, d]


def _array(kind: Any, num_dimensions: int) -> Any:
    return numba.types.Array(kind, num_dimensions, "C")


SIGNATURE = numba.void(
    _array(numba.float32, 3),
    _array(numba.float32, 3),
    _array(numba.int32, 1),
    _array(numba.int64, 1),
    _array(numba.float32, 4),
    _array(numba.float32, 4),
)
_on_one_thread = numba.njit(SIGNATURE, fastmath={"contract"}, cache=CACHE)(_rotate_and_store)
_on_all_threads = numba.njit(SIGNATURE, fastmath={"contract"}, cache=CACHE, parallel=True)(_rotate_and_store)
