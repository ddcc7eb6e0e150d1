"""Paged attention for GPUs: prefill, decode and both in one launch of programs in the Triton language.

Knows how a batch is handed to `triton_programs`, and every configuration in which that happens. Does not wait for the
device: what it decides follows from shapes.

Batch invariance: the kind of tiles and the number of splits follow from T, S and the tables' width (`tiling`). Where
they are the same, the result of a sequence's only token, or of any token in a tile that is not split, does not depend
on what else is in the batch; otherwise it may differ by rounding.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import triton

from kernels.aot import CAPABILITIES, Build
from kernels.dependent_launch import launch_options
from kernels.paged_attention.tiling import (
    CHOICES,
    KINDS,
    MAX_SPLITS,
    TILINGS,
    TUNED_BYTES,
    Kind,
    Tiling,
    choose_kind,
    choose_num_splits,
    choose_tiling,
    options_of,
)
from kernels.paged_attention.triton_programs import attend, combine
from kernels.triton_math import float8_as_bytes

__all__ = ["CHOICES", "paged_attention_triton", "shipped"]
LOG2_E = 1.4426950408889634
INTERPRETED_AS = (80, 8)  # capability and multiprocessors where there is no GPU
SPLITS_AT_ONCE = MAX_SPLITS


def paged_attention_triton(
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
    """Attend; see the contract in `kernels.paged_attention`.

    Raises:
        ValueError: heads of more than 256 channels, in fp32 of more than 128.
    """
    num_tokens, num_heads, head_dim = query.shape
    (num_sequences, width), (num_kv_heads, block_size) = block_tables.shape, key_cache.shape[1:3]
    num_groups = num_heads // num_kv_heads
    capability, num_multiprocessors = _device(query.device)
    kind = choose_kind(num_tokens, num_sequences)
    element_bytes = 4 if query.dtype == torch.float32 else key_cache.element_size()
    tiling = choose_tiling(capability, kind, element_bytes, head_dim, num_groups)
    is_single = num_tokens == num_sequences  # a token each, most likely: tiles need not be searched for
    tile_tokens = 1 if is_single else tiling.rows // num_groups
    num_tiles = num_tokens if is_single else (num_tokens - 1) // tile_tokens + num_sequences
    num_splits = choose_num_splits(num_tiles, num_kv_heads, width * block_size, num_multiprocessors)
    out = torch.empty(num_tokens, num_heads, head_dim, dtype=query.dtype, device=query.device)
    num_parts = num_splits if num_splits > 1 else 0
    parts = out.new_empty((num_tokens, num_heads, num_parts, head_dim), dtype=torch.float32)
    log_sums = out.new_empty((num_tokens, num_heads, num_parts), dtype=torch.float32)
    attend[num_tiles, num_kv_heads, num_splits](
        out,
        parts,
        log_sums,
        query,
        float8_as_bytes(key_cache),
        float8_as_bytes(value_cache),
        key_scales,
        value_scales,
        block_tables,
        token_to_seq,
        positions,
        sinks,
        num_tokens,
        tile_tokens,
        int(is_single),
        scale * LOG2_E if soft_cap is None else scale / soft_cap,
        0.0 if soft_cap is None else soft_cap * LOG2_E,
        0 if window is None else window,
        query.stride(0),
        query.stride(1),
        block_tables.stride(0),
        key_cache.stride(0),
        key_cache.stride(1),
        **_constants(tiling, num_groups, head_dim, block_size),
        IS_WINDOWED=window is not None,
        IS_CAPPED=soft_cap is not None,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_options(query.device),
    )
    if num_parts:
        options = _combine_constants(head_dim) | launch_options(query.device)
        combine[num_tokens, num_heads](out, parts, log_sums, num_parts, **options, num_warps=4)
    return out


@cache
def _device(device: torch.device) -> tuple[int, int]:
    """Return a device's compute capability, as 80 for 8.0, and its number of multiprocessors."""
    if device.type != "cuda":
        return INTERPRETED_AS
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def _constants(tiling: Tiling, num_groups: int, head_dim: int, block_size: int) -> dict[str, Any]:
    return {
        "GROUPS": num_groups,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_SIZE": block_size,
        "BLOCK_ROWS": tiling.rows,
        "BLOCK_POSITIONS": tiling.positions,
    }


def _combine_constants(head_dim: int) -> dict[str, Any]:
    return {"HEAD_DIM": head_dim, "BLOCK_DIM": triton.next_power_of_2(head_dim), "BLOCK_SPLITS": SPLITS_AT_ONCE}


def shipped() -> list[Build]:
    """Return the configurations that `paged_attention_triton` launches, at blocks of 16 and four heads a KV head.

    Every head size and type without variations; the variations of the families that have them, in bf16; and tilings
    that tuning may choose, without variations. Models in fp32 store what they compute.
    """
    plain = [
        (element, stored, head_dim, frozenset[str]())
        for head_dim in HEAD_DIMS
        for element, stored in (*PLAIN, *QUANTIZED)
        if (element, head_dim) != ("fp32", 256)
    ]
    varied = [("bf16", "bf16", head_dim, variations) for head_dim, variations in VARIED]
    attending = [
        _build(capability, kind, *configuration)
        for configuration in plain + varied
        for kind in KINDS
        for capability in CAPABILITIES
        if configuration[1] != ("fp8e4nv" if capability < FLOAT8_FROM else "u8")
    ]
    return [*attending, *_tuned_builds()] + [
        _build_combine(element, head_dim)
        for head_dim in HEAD_DIMS
        for element, _ in PLAIN
        if (element, head_dim) != ("fp32", 256)
    ]


HEAD_DIMS = (64, 96, 128, 256)
FLOAT8_FROM = 89  # compute capability; below, float8 is read as bytes
PLAIN = (("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32"))
QUANTIZED = tuple((element, stored) for element in ("bf16", "fp16") for stored in ("i8", "fp8e4nv", "u8"))
VARIED = (
    (64, frozenset({"sinks"})),  # gpt-oss
    (64, frozenset({"window", "sinks"})),
    (128, frozenset({"window"})),  # Mistral, Gemma 3
    (256, frozenset({"window"})),
    (128, frozenset({"cap"})),  # Gemma 2
    (256, frozenset({"cap"})),
    (256, frozenset({"window", "cap"})),
)


def _tuned_builds() -> list[Build]:
    return [
        replace(
            build,
            name=f"{build.name}, {option.positions} positions, {option.num_stages} stages",
            constants={**build.constants, "BLOCK_POSITIONS": option.positions},
            num_warps=option.num_warps,
            num_stages=option.num_stages,
            is_sampled=False,
        )
        for key in TILINGS
        for option in options_of(key)[1:]
        for stored in (("bf16",) if key[2] == TUNED_BYTES else ("i8", "fp8e4nv"))
        for build in (_build(key[0], key[1], "bf16", stored, key[3], frozenset()),)
    ]


def _build(capability: int, kind: Kind, element: str, stored: str, head_dim: int, variations: frozenset[str]) -> Build:
    element_bytes = 4 if element == "fp32" else 2 if stored == element else 1
    tiling = choose_tiling(capability, kind, element_bytes, head_dim, 4)
    types = {"out": f"*{element}", "parts": "*fp32", "log_sums": "*fp32", "query": f"*{element}"}
    types |= {"keys": f"*{stored}", "values": f"*{stored}"}
    types |= dict.fromkeys(("tables", "sequences", "positions"), "*i32") | dict.fromkeys(("scale", "cap"), "fp32")
    types |= dict.fromkeys(("num_tokens", "tile_tokens", "is_single", "window", "table_stride"), "i32")
    strides = ("query_stride", "query_head_stride", "block_stride", "head_stride")
    types |= dict.fromkeys(strides, "i32")
    types |= {} if stored == element else {"key_scales": "*fp32", "value_scales": "*fp32"}
    types |= {"sinks": "*fp32"} if "sinks" in variations else {}
    flags = {"IS_WINDOWED": "window" in variations, "IS_CAPPED": "cap" in variations}
    absent = dict.fromkeys({"key_scales", "value_scales", "sinks"} - types.keys())
    return Build(
        name=" ".join((kind, element, "over", stored, str(head_dim), *sorted(variations), f"sm_{capability}")),
        kernel=attend,
        types=types,
        constants=_constants(tiling, 4, head_dim, 16) | flags | absent,
        divisible=frozenset(strides),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        capabilities=(capability,),
        is_sampled=(element, head_dim, variations) == ("bf16", 128, set()) and (kind == "decode" or stored == element),
    )


def _build_combine(element: str, head_dim: int) -> Build:
    return Build(
        name=f"combine into {element} {head_dim}",
        kernel=combine,
        types={"out": f"*{element}", "parts": "*fp32", "log_sums": "*fp32", "num_splits": "i32"},
        constants=_combine_constants(head_dim),
        num_warps=4,
        is_sampled=(element, head_dim) == ("bf16", 96),
    )
