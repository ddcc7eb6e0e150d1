"""One row times weights of 8 or 4 bits, in the Triton language: a decode step of one sequence, without matrix units.

Sums in fp32, over channels side by side and then over these. A nibble n becomes 1 + n / 16 by writing it into the bits
of an fp32; the sum of the row's channels takes the 1 away again, and the zero point.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.aot import Build, constants_among
from kernels.quantized_linear.weights import Int4Weight, Int8Weight

MOST_INT8_OUTPUTS = 16384  # from here on there are tiles enough for every multiprocessor, and tiles are faster
INT8_OUTPUTS, INT8_CHANNELS = 4, 1024  # of a program, and of these at a time
INT4_OUTPUTS, INT4_CHANNELS = 8, 2048
NUM_WARPS = 4


def takes(weight: Int8Weight | Int4Weight) -> bool:
    """Whether a row times this weight is faster here than in a tile; measured on an H200."""
    if isinstance(weight, Int8Weight):
        return len(weight.values) < MOST_INT8_OUTPUTS
    return weight.group in {32, 64, 128}


def multiply_row(inputs: torch.Tensor, weight: Int8Weight | Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Map [1, C] to [1, O]."""
    is_int8 = isinstance(weight, Int8Weight)
    num_outputs = len(weight.values if is_int8 else weight.packed)
    out = torch.empty(1, num_outputs, dtype=inputs.dtype, device=inputs.device)
    sizes = num_outputs, inputs.shape[1]
    if is_int8:
        options = int8_options()
        grid = (triton.cdiv(num_outputs, INT8_OUTPUTS),)
        int8_row_kernel[grid](inputs, weight.values, weight.scales, bias, out, *sizes, **options)
    else:
        options = int4_options(weight.group)
        grid = (triton.cdiv(num_outputs, INT4_OUTPUTS),)
        stored = weight.packed, weight.scales, weight.zeros
        int4_row_kernel[grid](inputs, *stored, bias, out, *sizes, **options)
    return out


def int8_options() -> dict[str, Any]:
    """Return what is constant in a launch for 8 bits."""
    return {"BLOCK_O": INT8_OUTPUTS, "BLOCK_C": INT8_CHANNELS, "num_warps": NUM_WARPS}


def int4_options(group: int) -> dict[str, Any]:
    """Return what is constant in a launch for 4 bits in groups of that size."""
    return {"BLOCK_O": INT4_OUTPUTS, "GROUPS": INT4_CHANNELS // group, "GROUP": group, "num_warps": NUM_WARPS}


@triton.jit
def int8_row_kernel(
    inputs, values, scales, bias, out, num_outputs, num_channels, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Out = inputs values^T * scales + bias."""
    o = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    is_output = o < num_outputs
    sums = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for start in range(0, num_channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        is_channel = c < num_channels
        mask = is_output[:, None] & is_channel[None, :]
        w = tl.load(values + o[:, None] * num_channels + c[None, :], mask=mask, other=0)
        x = tl.load(inputs + c, mask=is_channel, other=0.0).to(tl.float32)
        sums += w.to(tl.int32).to(tl.float32) * x[None, :]
    _store_row(tl.sum(sums, axis=1) * tl.load(scales + o, mask=is_output, other=0.0), bias, out, o, is_output)


@triton.jit
def int4_row_kernel(
    inputs, packed, scales, zeros, bias, out, num_outputs, num_channels,
    BLOCK_O: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Out = sum over groups of (inputs (q - zeros)^T) * scales, + bias; GROUPS at a time, in words of 8 nibbles."""
    WORDS: tl.constexpr = GROUP // 8
    o = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    is_output = o < num_outputs
    num_groups = num_channels // GROUP
    words = packed.to(tl.pointer_type(tl.int32))
    sums = tl.zeros((BLOCK_O, GROUPS, WORDS), tl.float32)
    for start in range(0, num_groups, GROUPS):
        g = start + tl.arange(0, GROUPS)
        is_group = g < num_groups
        at = g[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
        mask = is_output[:, None, None] & is_group[None, :, None]
        w = tl.load(words + o[:, None, None] * (num_channels // 8) + at[None, :, :], mask=mask, other=0)
        lanes = at[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
        x = tl.load(inputs + lanes, mask=is_group[:, None, None], other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x, (GROUPS, WORDS, 2, 2, 2)))
        x04, x26 = tl.split(even)
        x15, x37 = tl.split(odd)
        x0, x4 = tl.split(x04)
        x1, x5 = tl.split(x15)
        x2, x6 = tl.split(x26)
        x3, x7 = tl.split(x37)
        part = _one_and(w, 0) * x0[None, :, :] + _one_and(w, 4) * x1[None, :, :]
        part += _one_and(w, 8) * x2[None, :, :] + _one_and(w, 12) * x3[None, :, :]
        part += _one_and(w, 16) * x4[None, :, :] + _one_and(w, 20) * x5[None, :, :]
        part += _one_and(w, 24) * x6[None, :, :] + _one_and(w, 28) * x7[None, :, :]
        place = o[:, None] * num_groups + g[None, :]
        is_there = is_output[:, None] & is_group[None, :]
        zero = tl.load(zeros + place, mask=is_there, other=0).to(tl.float32)
        scale = tl.load(scales + place, mask=is_there, other=0.0).to(tl.float32)
        total = tl.sum(x, axis=2)
        sums += (part * 16.0 - (zero + 16.0)[:, :, None] * total[None, :, :]) * scale[:, :, None]
    _store_row(tl.sum(tl.sum(sums, axis=2), axis=1), bias, out, o, is_output)


@triton.jit
def _one_and(words, SHIFT: tl.constexpr):
    """Return 1 + n / 16, fp32, of the nibble n that lies SHIFT bits up."""
    if SHIFT >= 19:  # noqa: SIM108 - decided by the compiler, which takes no negative shift
        moved = words >> (SHIFT - 19)
    else:
        moved = words << (19 - SHIFT)
    return ((moved & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _store_row(answers, bias, out, o, is_output):
    if bias is not None:
        answers += tl.load(bias + o, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + o, answers.to(out.dtype.element_ty), mask=is_output)


def builds(element: str) -> list[Build]:
    """Return what is compiled ahead for inputs of a type."""
    types = {"inputs": f"*{element}", "scales": "*fp32", "out": f"*{element}"}
    types |= {"num_outputs": "i32", "num_channels": "i32"}
    int8, int4 = types | {"values": "*i8"}, types | {"packed": "*u8", "zeros": "*u8"}

    def build(name: str, kernel: Any, types: dict[str, str], options: dict[str, Any]) -> Build:
        return Build(
            f"one row, {name}, {element}",
            kernel,
            types,
            constants_among(options) | {"bias": None},
            frozenset({"num_channels"}),
            num_warps=options["num_warps"],
            is_sampled=name.endswith("by 128") and element == "bf16",
        )

    return [
        build("int8", int8_row_kernel, int8, int8_options()),
        *(build(f"int4 by {group}", int4_row_kernel, int4, int4_options(group)) for group in (32, 64, 128)),
    ]
