"""Paged attention for CPUs, compiled by numba.

One work item is one token and one KV head with its G query heads: it walks the token's blocks in order with an online
softmax (arXiv 1805.02867), so keys and values are read once, in place, and nothing is gathered. Work items are dealt
out in turn to the threads, since later tokens of a prompt cost more than earlier ones. fp32 throughout.

Sizes are compile-time constants, so that the loops over D become straight vector code. They are plain integers in the
closure: a captured function would change the key of numba's on-disk cache in every process.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

FAST_MATH = {
    "nsz",
    "arcp",
    "contract",
    "afn",
    "reassoc",
}  # infinities keep their meaning: a running maximum starts at one


def paged_attention_cpu(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    token_to_seq: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend on fp32 CPU tensors; see the contract in `kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = key_cache.shape[1:3]
    out = torch.empty(num_tokens, num_heads, head_dim)
    kernel = _compile(num_heads // num_kv_heads, head_dim, block_size)
    kernel(
        query.numpy(),
        key_cache.numpy(),
        value_cache.numpy(),
        block_tables.numpy(),
        token_to_seq.numpy(),
        positions.numpy(),
        np.float32(scale),
        numba.get_num_threads(),
        out.numpy(),
    )
    return out


@cache
def _compile(num_groups: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Return the kernel for G query heads a KV head, head size D and block size B."""
    G, D, B = num_groups, head_dim, block_size

    @numba.njit(fastmath=FAST_MATH, cache=True, parallel=True)
    def kernel(
        query: Any,
        keys: Any,
        values: Any,
        tables: Any,
        rows: Any,
        positions: Any,
        scale: Any,
        num_workers: int,
        out: Any,
    ):
        num_kv_heads = keys.shape[1]
        num_items = rows.shape[0] * num_kv_heads
        for worker in numba.prange(num_workers):
            q = np.empty((G, D), np.float32)
            acc = np.empty((G, D), np.float32)
            state = np.empty((G, 2), np.float32)  # running maximum and sum
            scores = np.empty(B, np.float32)
            for item in range(worker, num_items, num_workers):
                token, head = item // num_kv_heads, item % num_kv_heads
                for g in range(G):
                    state[g, 0] = -np.inf
                    state[g, 1] = 0.0
                    for d in range(D):
                        q[g, d] = query[token, head * G + g, d] * scale
                        acc[g, d] = 0.0
                num_positions = positions[token] + 1
                for block in range((num_positions + B - 1) // B):
                    key = keys[tables[rows[token], block], head]
                    value = values[tables[rows[token], block], head]
                    length = min(B, num_positions - block * B)
                    for g in range(G):
                        top = state[g, 0]
                        for p in range(length):
                            dot = np.float32(0.0)
                            for d in range(D):
                                dot += q[g, d] * key[p, d]
                            scores[p] = dot
                            top = max(top, dot)
                        shrink = np.exp(state[g, 0] - top)
                        total = state[g, 1] * shrink
                        for d in range(D):
                            acc[g, d] *= shrink
                        for p in range(length):
                            weight = np.exp(scores[p] - top)
                            total += weight
                            for d in range(D):
                                acc[g, d] += weight * value[p, d]
                        state[g, 0] = top
                        state[g, 1] = total
                for g in range(G):
                    for d in range(D):
                        out[token, head * G + g, d] = acc[g, d] / state[g, 1]

    return kernel
