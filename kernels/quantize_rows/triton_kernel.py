"""Rows in 8 bits in Triton's language; one program quantizes `GROUPS` groups of channels, each held whole, in fp32.

scale = max |x| / LARGEST, or 1 where that is 0; q = x / scale. Lanes past the group or the row are loaded as 0 and do
not touch the maximum. A NaN or an infinity is made the scale by adding 0 * x to the maximum.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.quantize_rows.reference import LARGEST
from kernels.triton_math import float8_as_bytes, store_as

ELEMENTS = 2048  # in a program, where a group has fewer: short groups share one
ELEMENTS_PER_WARP = 512


def quantize_rows_triton(x: torch.Tensor, dtype: torch.dtype, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize; see the contract in `kernels.quantize_rows`."""
    num_rows, width = x.shape
    num_groups = -(-width // group)
    out = torch.empty(num_rows, width, dtype=dtype, device=x.device)
    scales = torch.empty(num_rows, num_groups, dtype=torch.float32, device=x.device)
    if out.numel():
        options = launch_options(group, LARGEST[dtype])
        grid = (triton.cdiv(num_rows * num_groups, options["GROUPS"]),)
        sizes = x.stride(0), num_rows * num_groups, num_groups, width, group
        quantize_rows_kernel[grid](x, float8_as_bytes(out), scales, *sizes, **options)
    return out, scales


def launch_options(group: int, largest: float) -> dict[str, Any]:
    """Return what is constant in a launch for groups of that many channels."""
    block = 1 << (group - 1).bit_length()
    groups = max(1, ELEMENTS // block)
    warps = min(16, max(1, groups * block // ELEMENTS_PER_WARP))
    return {"LARGEST": largest, "GROUPS": groups, "BLOCK": block, "num_warps": warps}


@triton.jit
def quantize_rows_kernel(
    x, out, scales, row_stride, num_items, num_groups, width, group,
    LARGEST: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantize items `row * num_groups + group`."""
    items = (tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)).to(tl.int64)
    rows = (items // num_groups)[:, None]
    lanes = tl.arange(0, BLOCK)[None, :]
    channels = (items % num_groups)[:, None] * group + lanes
    mask = (items < num_items)[:, None] & (lanes < group) & (channels < width)
    values = tl.load(x + rows * row_stride + channels, mask=mask, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(values), axis=1) + tl.sum(values * 0.0, axis=1)
    scale = tl.where(top == 0.0, 1.0, tl.div_rn(top, tl.full(top.shape, LARGEST, tl.float32)))
    tl.store(scales + items, scale, mask=items < num_items)
    scaled = tl.div_rn(values, tl.broadcast_to(scale[:, None], (GROUPS, BLOCK)))
    tl.store(out + rows * width + channels, store_as(scaled, out.dtype.element_ty), mask=mask)


def shipped() -> list[Build]:
    """Return whole rows of the widths of models that we serve, and groups of 128 channels."""
    return [
        _build(element, stored, group)
        for group in (128, 1024, 2048, 4096, 8192, 16384, 32768)  # others share a launch with the next of these
        for element in ("bf16", "fp16")
        for stored in ("i8", "fp8e4nv", "u8")
    ]


def _build(element: str, stored: str, group: int) -> Build:
    options = launch_options(group, LARGEST[torch.int8 if stored == "i8" else torch.float8_e4m3fn])
    sizes = dict.fromkeys(("row_stride", "num_items", "num_groups", "width", "group"), "i32")
    return Build(
        f"{element} to {stored}, groups of {group}",
        quantize_rows_kernel,
        {"x": f"*{element}", "out": f"*{stored}", "scales": "*fp32", **sizes},
        {key: options[key] for key in ("LARGEST", "GROUPS", "BLOCK")},
        frozenset({"row_stride", "width", "group"}),
        num_warps=options["num_warps"],
        capabilities=(80,) if stored == "u8" else (90, 100) if stored == "fp8e4nv" else (80, 90, 100),
        is_sampled=element == "bf16" and group == 4096,
    )
