"""RMSNorm in Triton's language; one program normalizes `ROWS` rows, each held whole, in fp32.

y = x / sqrt(mean x^2 + eps) * (offset + w); lanes past C are loaded as 0 and add nothing to the mean.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels import dependent_launch
from kernels.aot import Build
from kernels.dependent_launch import await_inputs

ELEMENTS = 2048  # in a program, where a row has fewer: short rows share one
ELEMENTS_PER_WARP = 512


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    """Normalize; see the contract in `kernels.rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads = x.view(-1, 1, x.shape[-1]) if x.is_contiguous() or x.ndim < 3 else x.flatten(0, -3)
    num_rows, num_heads, width = heads.shape
    if not out.numel():
        return out
    options = launch_options(width)
    grid = (triton.cdiv(num_rows * num_heads, options["ROWS"]),)
    strides = heads.stride(0), heads.stride(1), num_rows * num_heads, num_heads
    rms_norm_kernel[grid](
        heads, weight, out, *strides, width, eps, offset, **options, **dependent_launch.launch_options(x.device)
    )
    return out


def add_rms_norm_triton(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    """Add and normalize; see the contract in `kernels.rms_norm`."""
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    num_rows, width = residual.shape
    if not out.numel():
        return out
    options = launch_options(width)
    grid = (triton.cdiv(num_rows, options["ROWS"]),)
    dependent = dependent_launch.launch_options(x.device)
    add_rms_norm_kernel[grid](residual, x, weight, out, num_rows, width, eps, offset, **options, **dependent)
    return out


def launch_options(width: int) -> dict[str, Any]:
    """Return rows a program, lanes a row and warps for rows of that width."""
    block = 1 << (width - 1).bit_length()
    rows = max(1, ELEMENTS // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(16, max(1, rows * block // ELEMENTS_PER_WARP))}


@triton.jit
def rms_norm_kernel(
    x, weight, out, row_stride, head_stride, num_items, num_heads, width, eps, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Normalize items `row * num_heads + head`, that lie `row_stride` and `head_stride` apart in x."""
    items = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    lanes = tl.arange(0, BLOCK)[None, :]
    mask = (items < num_items) & (lanes < width)
    places = items // num_heads * row_stride + items % num_heads * head_stride + lanes
    weights = tl.load(weight + lanes, mask=lanes < width, other=0.0)
    await_inputs(DEPENDENT)
    values = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    _store_normed(values, weights, out + items * width + lanes, mask, width, eps, offset)


@triton.jit
def add_rms_norm_kernel(
    residual, x, weight, out, num_rows, width, eps, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Add rows of x to those of the residual and normalize the sums as the residual keeps them."""
    items = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    lanes = tl.arange(0, BLOCK)[None, :]
    mask = (items < num_rows) & (lanes < width)
    places = items * width + lanes
    weights = tl.load(weight + lanes, mask=lanes < width, other=0.0)
    await_inputs(DEPENDENT)
    added = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    kept = tl.load(residual + places, mask=mask, other=0.0).to(tl.float32) + added
    kept = kept.to(residual.dtype.element_ty)
    tl.store(residual + places, kept, mask=mask)
    _store_normed(kept.to(tl.float32), weights, out + places, mask, width, eps, offset)


@triton.jit
def _store_normed(values, weights, targets, mask, width, eps, offset):
    factor = 1.0 / tl.sqrt(tl.sum(values * values, axis=1, keep_dims=True) / width + eps)
    tl.store(targets, (values * factor * (offset + weights.to(tl.float32))).to(targets.dtype.element_ty), mask=mask)


def shipped() -> list[Build]:
    """Return both kernels for the widths of models, and of heads, that we serve."""
    return [
        build
        for width in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # others share a launch with the next of these
        for element in ("bf16", "fp16", "fp32")
        for build in _builds(width, element)
    ]


def _builds(width: int, element: str) -> list[Build]:
    options = launch_options(width)
    constants = {"ROWS": options["ROWS"], "BLOCK": options["BLOCK"]}
    types = {"x": f"*{element}", "weight": f"*{element}", "out": f"*{element}", "eps": "fp32", "offset": "fp32"}
    strided = dict.fromkeys(("row_stride", "head_stride", "num_items", "num_heads", "width"), "i32")
    added = {"residual": f"*{element}", "num_rows": "i32", "width": "i32"}
    common: dict[str, Any] = {"num_warps": options["num_warps"], "is_sampled": width == 4096 and element == "bf16"}
    return [
        Build(
            f"{element}, {width}",
            rms_norm_kernel,
            types | strided,
            constants,
            frozenset({"row_stride", "head_stride", "width"}),
            **common,
        ),
        Build(
            f"{element}, {width}, of a sum",
            add_rms_norm_kernel,
            types | added,
            constants,
            frozenset({"width"}),
            **common,
        ),
    ]
