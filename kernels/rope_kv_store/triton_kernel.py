"""Rotary embedding and KV store for GPUs, in the Triton language.

One program is one token and BLOCK_HEADS of its heads: of its queries, its keys or its values. A thread holds both
channels of a pair, so queries can be written where they were read. Rotation and quantization in fp32.

Masks: heads beyond the last one, channels beyond R/2, R or D where these are no powers of two.
"""

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.cache_quantization import LARGEST, SMALLEST_TOP
from kernels.dependent_launch import await_inputs, launch_options
from kernels.triton_math import float8_as_bytes, store_as

TOP_FLOOR = tl.constexpr(SMALLEST_TOP)
ELEMENTS = 1024  # of a program, with 4 warps: 8 a thread, one 16-byte access for half precision


def rope_kv_store_triton(
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
    """Rotate and store; see the contract in `kernels.rope_kv_store`."""
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    sizes = _constants(head_dim, cos_sin.shape[2], block_size, LARGEST.get(key_cache.dtype, 0.0))
    kv_programs = triton.cdiv(num_kv_heads, sizes["BLOCK_HEADS"])
    _rope_kv_store[qkv.shape[0], triton.cdiv(num_heads, sizes["BLOCK_HEADS"]) + 2 * kv_programs](
        qkv,
        cos_sin,
        positions,
        slot_mapping,
        float8_as_bytes(key_cache),
        float8_as_bytes(value_cache),
        key_scales,
        value_scales,
        num_heads,
        num_kv_heads,
        key_cache.stride(0),
        key_cache.stride(1),
        **sizes,
        **launch_options(qkv.device),
        num_warps=4,
    )


def _constants(head_dim: int, half: int, block_size: int, largest: float) -> dict[str, int | float]:
    dim = triton.next_power_of_2(head_dim)
    return {
        "HEAD_DIM": head_dim,
        "HALF": half,
        "BLOCK_SIZE": block_size,
        "LARGEST": largest,
        "BLOCK_HEADS": max(1, ELEMENTS // dim),
        "BLOCK_HALF": triton.next_power_of_2(half),
        "BLOCK_REST": triton.next_power_of_2(max(1, head_dim - 2 * half)),
        "BLOCK_DIM": dim,
    }


@triton.jit
def _rope_kv_store(
    qkv,
    cos_sin,
    positions,
    slots,
    keys,
    values,
    key_scales,
    value_scales,
    num_heads,
    num_kv_heads,
    block_stride,
    head_stride,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    await_inputs(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    query_parts = tl.cdiv(num_heads, BLOCK_HEADS)
    kv_parts = tl.cdiv(num_kv_heads, BLOCK_HEADS)
    row = qkv + token * (num_heads + 2 * num_kv_heads) * HEAD_DIM
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * (2 * HALF)
    lane = tl.arange(0, BLOCK_HEADS)
    if part < query_parts:
        heads = part * BLOCK_HEADS + lane
        _turn_queries(row + heads * HEAD_DIM, heads < num_heads, angles, HALF, BLOCK_HALF)
    else:
        slot = tl.load(slots + token)
        block = slot // BLOCK_SIZE
        offset = slot % BLOCK_SIZE
        is_key = part < query_parts + kv_parts
        heads = (part - tl.where(is_key, query_parts, query_parts + kv_parts)) * BLOCK_HEADS + lane
        mask = heads < num_kv_heads
        target = block * block_stride + heads * head_stride + offset * HEAD_DIM
        scale_target = (block * num_kv_heads + heads) * BLOCK_SIZE + offset
        if is_key:
            source = row + (num_heads + heads) * HEAD_DIM
            _store_keys(
                source,
                mask,
                angles,
                keys,
                target,
                key_scales,
                scale_target,
                HEAD_DIM,
                HALF,
                LARGEST,
                BLOCK_HALF,
                BLOCK_REST,
            )
        else:
            source = row + (num_heads + num_kv_heads + heads) * HEAD_DIM
            _store_values(source, mask, values, target, value_scales, scale_target, HEAD_DIM, LARGEST, BLOCK_DIM)


@triton.jit
def _turn_queries(rows, is_head, angles, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    first, second = _rotate(rows, is_head, angles, HALF, BLOCK_HALF)
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    mask = is_head[:, None] & (pair < HALF)
    tl.store(rows[:, None] + pair, first.to(rows.dtype.element_ty), mask=mask)
    tl.store(rows[:, None] + HALF + pair, second.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def _store_keys(
    rows,
    is_head,
    angles,
    keys,
    target,
    scales,
    scale_target,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    first, second = _rotate(rows, is_head, angles, HALF, BLOCK_HALF)
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    channel = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
    mask = is_head[:, None] & (pair < HALF)
    rest_mask = is_head[:, None] & (channel < HEAD_DIM)
    rest = tl.load(rows[:, None] + channel, mask=rest_mask, other=0.0).to(tl.float32)
    target_rows = keys + target[:, None]
    kind: tl.constexpr = keys.dtype.element_ty
    if LARGEST != 0.0:
        top = tl.maximum(tl.maximum(_top(first), _top(second)), _top(rest))
        factor = _factor(top, LARGEST, scales, scale_target, is_head)
        first = first * factor
        second = second * factor
        rest = rest * factor
    tl.store(target_rows + pair, store_as(first, kind), mask=mask)
    tl.store(target_rows + HALF + pair, store_as(second, kind), mask=mask)
    tl.store(target_rows + channel, store_as(rest, kind), mask=rest_mask)


@triton.jit
def _store_values(
    rows,
    is_head,
    values,
    target,
    scales,
    scale_target,
    HEAD_DIM: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    channel = tl.arange(0, BLOCK_DIM)[None, :]
    mask = is_head[:, None] & (channel < HEAD_DIM)
    value = tl.load(rows[:, None] + channel, mask=mask, other=0.0).to(tl.float32)
    if LARGEST != 0.0:
        value = value * _factor(_top(value), LARGEST, scales, scale_target, is_head)
    tl.store(values + target[:, None] + channel, store_as(value, values.dtype.element_ty), mask=mask)


@triton.jit
def _rotate(rows, is_head, angles, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Return both halves of the turned channels, [BLOCK_HEADS, BLOCK_HALF] fp32."""
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    mask = is_head[:, None] & (pair < HALF)
    cos = tl.load(angles + pair, mask=pair < HALF, other=0.0)
    sin = tl.load(angles + HALF + pair, mask=pair < HALF, other=0.0)
    x1 = tl.load(rows[:, None] + pair, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(rows[:, None] + HALF + pair, mask=mask, other=0.0).to(tl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def _top(x):
    """Return the largest magnitude of each row, NaN where the row has a NaN or an infinity: no maximum would tell."""
    return tl.max(tl.abs(x), axis=1) + tl.sum(x * 0.0, axis=1)


@triton.jit
def _factor(top, LARGEST: tl.constexpr, scales, target, mask):
    """Return what rows are multiplied by before they are stored, [BLOCK_HEADS, 1]; stores their scales."""
    top = tl.where(top < TOP_FLOOR, TOP_FLOOR, top)  # a NaN is not below
    tl.store(scales + target, top * (1.0 / LARGEST), mask=mask)
    return tl.div_rn(tl.full(top.shape, LARGEST, tl.float32), top)[:, None]


def shipped() -> list[Build]:
    """Return every configuration that `rope_kv_store_triton` launches for the models we serve, at blocks of 16.

    Models in fp32 store what they compute.
    """
    return [
        _build(element, stored, head_dim, rotary_dim)
        for head_dim, rotary_dim in ((64, 64), (96, 96), (128, 96), (128, 128), (256, 256))  # 96 of 128: Phi-4-mini
        for element in ("bf16", "fp16", "fp32")
        for stored in (element, *(() if element == "fp32" else ("i8", "fp8e4nv", "u8")))
    ]


def _build(element: str, stored: str, head_dim: int, rotary_dim: int) -> Build:
    is_plain = stored == element
    largest = {"i8": LARGEST[torch.int8], "fp8e4nv": LARGEST[torch.float8_e4m3fn], "u8": LARGEST[torch.float8_e4m3fn]}
    scales = {} if is_plain else {"key_scales": "*fp32", "value_scales": "*fp32"}
    return Build(
        name=f"{element} stored as {stored}, {rotary_dim} of {head_dim} turned",
        kernel=_rope_kv_store,
        types={
            "qkv": f"*{element}",
            "cos_sin": "*fp32",
            "positions": "*i32",
            "slots": "*i64",
            "keys": f"*{stored}",
            "values": f"*{stored}",
            **scales,
            "num_heads": "i32",
            "num_kv_heads": "i32",
            "block_stride": "i32",
            "head_stride": "i32",
        },
        constants=_constants(head_dim, rotary_dim // 2, 16, largest.get(stored, 0.0))
        | ({"key_scales": None, "value_scales": None} if is_plain else {}),
        divisible=frozenset({"block_stride", "head_stride"}),
        num_warps=4,
        capabilities=(80,) if stored == "u8" else (90, 100) if stored == "fp8e4nv" else (80, 90, 100),
        is_sampled=rotary_dim == 96 and element == "bf16",
    )
