"""Paged attention for CPUs, compiled by numba.

One work item is one token and one KV head with its G query heads: it walks the token's blocks in order with an online
softmax (arXiv 1805.02867), so keys and values are read once, in place, and nothing is gathered. All tokens of a head
come one after the other, so that blocks they share stay in the cache. fp32 throughout.

Sizes and which variations apply are compile-time constants, so that the loops over D become straight vector code and
what is not asked for costs nothing. They are plain integers in the closure: a captured function would change the key
of numba's on-disk cache in every process. With a vectorized exponential and four values at a time, 64 sequences of 160
tokens (9/3 heads of 64, 2 threads) take 540 us instead of 870.

Of a quantized cache a block's keys and values are widened first, byte by byte through a table of what the 256 bytes
mean, and scaled; all query heads of the group read them then.

A sink is where the online softmax starts: a score already seen, of no value.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from kernels.cpu_cache import CACHE
from kernels.cpu_math import FAST_MATH, exp32
from kernels.cpu_workers import new_counters, take, take_next

ROWS = "C"  # layout of an array without gaps
NO_SCALES, NO_SINKS = np.empty((0, 0, 0), np.float32), np.empty(0, np.float32)


def signature(stored: Any) -> Any:
    """Return the kernel's, for a cache of that type; so one compilation serves every call, also a single token's."""
    return numba.void(
        numba.types.Array(numba.float32, 3, "A"),  # query: a part of wider rows
        numba.types.Array(stored, 4, ROWS),  # keys
        numba.types.Array(stored, 4, ROWS),  # values
        numba.types.Array(numba.float32, 3, ROWS),  # key_scales
        numba.types.Array(numba.float32, 3, ROWS),  # value_scales
        numba.types.Array(numba.float32, 1, ROWS),  # meanings
        numba.types.Array(numba.int32, 2, ROWS),  # tables
        numba.types.Array(numba.int32, 1, ROWS),  # rows
        numba.types.Array(numba.int32, 1, ROWS),  # positions
        numba.float32,  # scale
        numba.int64,  # window
        numba.float32,  # cap
        numba.types.Array(numba.float32, 1, ROWS),  # sinks
        numba.int64,  # num_members
        numba.types.Array(numba.float32, 3, ROWS),  # out
    )


def paged_attention_cpu(
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
    """Attend on fp32 CPU tensors; see the contract in `kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = query.shape
    block_size = key_cache.shape[2]
    out = torch.empty(num_tokens, num_heads, head_dim)
    is_quantized = key_scales is not None
    variations = int(window is not None), int(soft_cap is not None), int(sinks is not None), int(is_quantized)
    kernel = _compile(head_dim, block_size, *variations)
    kernel(
        query.numpy(),
        (key_cache.view(torch.uint8) if is_quantized else key_cache).numpy(),
        (value_cache.view(torch.uint8) if is_quantized else value_cache).numpy(),
        NO_SCALES if key_scales is None else key_scales.numpy(),
        NO_SCALES if value_scales is None else value_scales.numpy(),
        _meanings(key_cache.dtype),
        block_tables.numpy(),
        token_to_seq.numpy(),
        positions.numpy(),
        np.float32(scale),
        window or 0,
        np.float32(soft_cap or 0),
        NO_SINKS if sinks is None else sinks.numpy(),
        torch.get_num_threads(),
        out.numpy(),
    )
    return out


@cache
def _meanings(dtype: torch.dtype) -> np.ndarray:
    """Return what each byte means in a cache of that type, [256] fp32; nothing for one that is not quantized."""
    if dtype.itemsize > 1:
        return np.empty(0, np.float32)
    return torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()


@cache
def _compile(
    head_dim: int, block_size: int, has_window: int, has_cap: int, has_sinks: int, is_quantized: int
) -> Callable[..., None]:
    """Return the kernel for head size D, block size B and the variations that apply."""
    D, B = head_dim, block_size
    WINDOWED, CAPPED, SINKS, QUANTIZED = has_window, has_cap, has_sinks, is_quantized

    @numba.njit(
        signature(numba.uint8 if is_quantized else numba.float32), fastmath=FAST_MATH, cache=CACHE, parallel=True
    )
    def kernel(
        query: Any,
        keys: Any,
        values: Any,
        key_scales: Any,
        value_scales: Any,
        meanings: Any,
        tables: Any,
        rows: Any,
        positions: Any,
        scale: Any,
        window: int,
        cap: Any,
        sinks: Any,
        num_members: int,
        out: Any,
    ):
        num_kv_heads = keys.shape[1]
        G = query.shape[1] // num_kv_heads
        num_tokens = rows.shape[0]
        num_items = num_tokens * num_kv_heads
        counters = new_counters(1, num_members)
        for me in numba.prange(num_members):
            member = (counters, me, num_members)
            q = np.empty((G, D), np.float32)
            acc = np.empty((G, D), np.float32)
            state = np.empty((G, 2), np.float32)  # running maximum and sum
            scores = np.empty(B, np.float32)
            wide_keys, wide_values = np.empty((B, D), np.float32), np.empty((B, D), np.float32)
            item = take(member, 0, num_items)
            while item < num_items:
                head, token = item // num_tokens, item % num_tokens
                for g in range(G):
                    state[g, 0] = sinks[head * G + g] if SINKS else -np.inf
                    state[g, 1] = 1.0 if SINKS else 0.0
                    for d in range(D):
                        q[g, d] = query[token, head * G + g, d] * scale
                        acc[g, d] = 0.0
                num_positions = positions[token] + 1
                first = max(0, num_positions - window) if WINDOWED else 0
                for block in range(first // B, (num_positions + B - 1) // B):
                    index = tables[rows[token], block]
                    begin = max(0, first - block * B) if WINDOWED else 0
                    length = min(B, num_positions - block * B)
                    if QUANTIZED:
                        for p in range(begin, length):
                            key_scale, value_scale = key_scales[index, head, p], value_scales[index, head, p]
                            for d in range(D):
                                wide_keys[p, d] = meanings[keys[index, head, p, d]] * key_scale
                                wide_values[p, d] = meanings[values[index, head, p, d]] * value_scale
                        key, value = wide_keys, wide_values
                    else:
                        key, value = keys[index, head], values[index, head]
                    for g in range(G):
                        for p in range(B):
                            scores[p] = -np.inf
                        for p in range(begin, length):
                            dot = np.float32(0.0)
                            for d in range(D):
                                dot += q[g, d] * key[p, d]
                            scores[p] = cap * np.tanh(dot / cap) if CAPPED else dot
                        top = state[g, 0]
                        for p in range(B):
                            top = max(top, scores[p])
                        shrink = np.exp(state[g, 0] - top)
                        total = np.float32(0.0)
                        for p in range(B):
                            weight = exp32(scores[p] - top)
                            scores[p] = weight
                            total += weight
                        for d in range(D):
                            acc[g, d] *= shrink
                        whole_quads = begin + (length - begin) // 4 * 4
                        for p in range(begin, whole_quads, 4):  # four at a time: the sums stay in registers longer
                            w0, w1, w2, w3 = scores[p], scores[p + 1], scores[p + 2], scores[p + 3]
                            for d in range(D):
                                first_two = w0 * value[p, d] + w1 * value[p + 1, d]
                                acc[g, d] += first_two + w2 * value[p + 2, d] + w3 * value[p + 3, d]
                        for p in range(whole_quads, length):
                            for d in range(D):
                                acc[g, d] += scores[p] * value[p, d]
                        state[g, 0] = top
                        state[g, 1] = state[g, 1] * shrink + total
                for g in range(G):
                    scale_out = np.float32(1.0) / state[g, 1]
                    for d in range(D):
                        out[token, head * G + g, d] = acc[g, d] * scale_out
                item = take_next(member, 0, num_items)

    return kernel
