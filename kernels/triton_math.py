"""Mathematics that Triton-language kernels share.

Knows elements of blocks. Does not know shapes or memory. Imported by Triton kernels only.

Float8 is e4m3 without infinities (arXiv 2209.05433, section 3.1). GPUs before compute capability 8.9 have no
instructions for it, so there it goes through its bits, as bytes: same values, rounded the same way.
"""

import torch
import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction
E4M3_ROUNDER = tl.constexpr(24576.0)  # 1.5 * 2^14: no room for less than 2^-9, float8's smallest step


def float8_as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float8 tensor as the bytes that kernels ask for where the device cannot convert it; others as is."""
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor
    is_native = tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 9)
    return tensor if is_native else tensor.view(torch.uint8)


@triton.jit
def round_half_even(x):
    """Round fp32 of magnitude below 2^22 to whole numbers."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def tanh(x):
    """Return 1 - 2 / (e^2x + 1), fp32; exact at both infinities."""
    return 1.0 - 2.0 / (tl.exp2(x * 2.885390081777927) + 1.0)


@triton.jit
def e4m3_bytes(x):
    """Round fp32 of magnitude up to 464 to float8, as bytes; halves to even.

    First to a value that float8 holds, by bits where it is normal and by addition where it is not. Divided by 256 that
    is a half float whose exponent has float8's bias, so its bits are float8's with seven zeros behind.
    """
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    subnormal = (x + E4M3_ROUNDER) - E4M3_ROUNDER
    value = tl.where(tl.abs(x) < 0.015625, subnormal, normal)
    half = (value * 0.00390625).to(tl.float16).to(tl.uint16, bitcast=True)
    return (((half >> 8) & 0x80) | ((half >> 7) & 0x7F)).to(tl.uint8)


@triton.jit
def from_e4m3_bytes(stored):
    """Return bytes of float8 as fp16, which holds them all (its NaN becomes 480)."""
    wide = stored.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def store_as(x, pointer_type: tl.constexpr):
    """Convert scaled fp32 to what a quantized cache of that element type stores."""
    if pointer_type == tl.int8:
        return round_half_even(x).to(tl.int8)
    elif pointer_type == tl.uint8:
        return e4m3_bytes(x)
    else:
        return x.to(pointer_type)
