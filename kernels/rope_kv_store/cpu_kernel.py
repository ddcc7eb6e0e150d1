"""Rotary embedding and KV store for CPUs, compiled by numba; one work item is one token. fp32 throughout."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import torch

from kernels.cpu_cache import CACHE
from kernels.rope_kv_store.cpu_rows import store_quantized, turn

PARALLEL_FROM = 16  # tokens; below, waking the other threads costs more than they save
FAST_MATH = {"contract"}


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
    """Rotate and store fp32 CPU tensors; see the contract in `kernels.rope_kv_store`."""
    heads = qkv.view(qkv.shape[0], -1, key_cache.shape[3])
    is_parallel = len(heads) >= PARALLEL_FROM
    rows = heads.numpy(), cos_sin.numpy(), positions.numpy(), slot_mapping.numpy()
    if key_scales is None or value_scales is None:
        (_on_all_threads if is_parallel else _on_one_thread)(*rows, key_cache.numpy(), value_cache.numpy())
        return
    _compile_quantized(is_parallel)(
        *rows,
        key_cache.view(torch.uint8).numpy(),
        value_cache.view(torch.uint8).numpy(),
        key_scales.numpy(),
        value_scales.numpy(),
        key_cache.dtype == torch.float8_e4m3fn,
    )


def _rotate_and_store(heads: Any, cos_sin: Any, positions: Any, slots: Any, key_cache: Any, value_cache: Any):
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    num_queries = heads.shape[1] - 2 * num_kv_heads
    half = cos_sin.shape[2]
    for token in numba.prange(heads.shape[0]):
        block, offset = slots[token] // block_size, slots[token] % block_size
        cos, sin = cos_sin[positions[token], 0], cos_sin[positions[token], 1]
        for head in range(num_queries):
            turn(heads[token, head], cos, sin)
        for head in range(num_kv_heads):
            for d in range(half):
                x1, x2 = heads[token, num_queries + head, d], heads[token, num_queries + head, half + d]
                key_cache[block, head, offset, d] = x1 * cos[d] - x2 * sin[d]
                key_cache[block, head, offset, half + d] = x2 * cos[d] + x1 * sin[d]
            for d in range(2 * half, head_dim):
                key_cache[block, head, offset, d] = heads[token, num_queries + head, d]
            for d in range(head_dim):
                value_cache[block, head, offset, d] = heads[token, num_queries + num_kv_heads + head, d]


def _rotate_and_quantize(
    heads: Any,
    cos_sin: Any,
    positions: Any,
    slots: Any,
    key_cache: Any,
    value_cache: Any,
    key_scales: Any,
    value_scales: Any,
    is_float8: bool,
):
    num_kv_heads, block_size = key_cache.shape[1:3]
    num_rotated = heads.shape[1] - num_kv_heads
    for token in numba.prange(heads.shape[0]):
        block, offset = slots[token] // block_size, slots[token] % block_size
        cos, sin = cos_sin[positions[token], 0], cos_sin[positions[token], 1]
        for head in range(num_rotated):
            turn(heads[token, head], cos, sin)
        for head in range(num_kv_heads):
            key, value = heads[token, num_rotated - num_kv_heads + head], heads[token, num_rotated + head]
            key_scales[block, head, offset] = store_quantized(key, key_cache[block, head, offset], is_float8)
            value_scales[block, head, offset] = store_quantized(value, value_cache[block, head, offset], is_float8)


def _array(kind: Any, num_dimensions: int) -> Any:
    return numba.types.Array(kind, num_dimensions, "C")


ROWS = _array(numba.float32, 3), _array(numba.float32, 3), _array(numba.int32, 1), _array(numba.int64, 1)
SIGNATURE = numba.void(*ROWS, _array(numba.float32, 4), _array(numba.float32, 4))
QUANTIZED = numba.void(*ROWS, *[_array(numba.uint8, 4)] * 2, *[_array(numba.float32, 3)] * 2, numba.boolean)
_on_one_thread = numba.njit(SIGNATURE, fastmath=FAST_MATH, cache=CACHE)(_rotate_and_store)
_on_all_threads = numba.njit(SIGNATURE, fastmath=FAST_MATH, cache=CACHE, parallel=True)(_rotate_and_store)


@cache
def _compile_quantized(is_parallel: bool) -> Callable[..., None]:
    """Return the kernel for quantized caches, which most engines do without."""
    return numba.njit(QUANTIZED, fastmath=FAST_MATH, cache=CACHE, parallel=is_parallel)(_rotate_and_quantize)
