"""Quantized weights as plain ones in Triton's language, for products of so many rows that widening costs little.

    wide[o, c] = values[o, c] * scale, rounded once to the type of the inputs

Knows layouts. Does not know products.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.aot import Build, constants_among
from kernels.quantized_linear.weights import Int4Weight, Int8Weight

BYTES = 8192  # that one program reads
NUM_WARPS = 4


def widen(weight: Int8Weight | Int4Weight, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight, [O, C], in the type."""
    if isinstance(weight, Int8Weight):
        num_outputs, num_channels = weight.values.shape
        wide = torch.empty(num_outputs, num_channels, dtype=dtype, device=weight.values.device)
        grid = (num_outputs, triton.cdiv(num_channels, BYTES))
        widen_int8_kernel[grid](weight.values, weight.scales, wide, num_channels, **int8_options())
        return wide
    num_outputs, num_bytes = weight.packed.shape
    wide = torch.empty(num_outputs, 2 * num_bytes, dtype=dtype, device=weight.packed.device)
    options, num_groups = int4_options(weight.group), weight.scales.numel()
    grid = (triton.cdiv(num_groups, options["GROUPS"]),)
    arguments = weight.packed, weight.scales, weight.zeros, wide, num_groups, weight.group // 2
    widen_int4_kernel[grid](*arguments, **options)
    return wide


def int8_options() -> dict[str, Any]:
    """Return what is constant in a launch."""
    return {"BLOCK": BYTES, "num_warps": NUM_WARPS}


def int4_options(group: int) -> dict[str, Any]:
    """Return what is constant in a launch for groups of that many channels."""
    block = triton.next_power_of_2(group // 2)
    return {"GROUPS": max(1, BYTES // 2 // block), "BLOCK": block, "num_warps": NUM_WARPS}


@triton.jit
def widen_int8_kernel(values, scales, wide, num_channels, BLOCK: tl.constexpr):
    """Widen a part of one output's channels."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * num_channels + c
    w = tl.load(values + at, mask=c < num_channels, other=0).to(tl.float32) * tl.load(scales + tl.program_id(0))
    tl.store(wide + at, w.to(wide.dtype.element_ty), mask=c < num_channels)


@triton.jit
def widen_int4_kernel(
    packed, scales, zeros, wide, num_groups, num_bytes, GROUPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Widen `GROUPS` groups of `num_bytes` bytes; groups follow each other as their scales do."""
    g = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    i, c = tl.arange(0, BLOCK)[None, :], tl.arange(0, 2 * BLOCK)[None, :]
    is_group = g < num_groups
    byte = tl.load(packed + g[:, None] * num_bytes + i, mask=is_group[:, None] & (i < num_bytes), other=0)
    zero = tl.load(zeros + g, mask=is_group, other=0).to(tl.float32)[:, None]
    scale = tl.load(scales + g, mask=is_group, other=0.0).to(tl.float32)[:, None]
    both = tl.interleave((byte & 15).to(tl.float32), (byte >> 4).to(tl.float32))
    w = ((both - zero) * scale).to(wide.dtype.element_ty)
    tl.store(wide + g[:, None] * (2 * num_bytes) + c, w, mask=is_group[:, None] & (c < 2 * num_bytes))


def builds(element: str) -> list[Build]:
    """Return what is compiled ahead for inputs of a type."""
    int8 = {"values": "*i8", "scales": "*fp32", "wide": f"*{element}", "num_channels": "i32"}
    int4 = {"packed": "*u8", "scales": "*fp32", "zeros": "*u8", "wide": f"*{element}"}
    int4 |= {"num_groups": "i32", "num_bytes": "i32"}

    def build(name: str, kernel: Any, types: dict[str, str], options: dict[str, Any], divisible: str) -> Build:
        name, constants = f"widen {name}, {element}", constants_among(options)
        return Build(name, kernel, types, constants, frozenset({divisible}), num_warps=options["num_warps"])

    return [
        build("int8", widen_int8_kernel, int8, int8_options(), "num_channels"),
        *(
            build(f"int4 by {group}", widen_int4_kernel, int4, int4_options(group), "num_bytes")
            for group in (32, 64, 128)
        ),
    ]
