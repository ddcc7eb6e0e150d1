"""Launching the quantized products of `triton_products`: tiles by the number of rows, and what is compiled ahead.

Knows shapes and layouts. Does not know how a tile is computed.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton

from kernels.aot import Build
from kernels.quantize_rows.triton_kernel import quantize_rows_triton
from kernels.quantized_linear import triton_products as products
from kernels.quantized_linear.weights import Float8Weight, Int4Weight, Int8Weight
from kernels.triton_math import float8_as_bytes
from kernels.tuning import Choices, Configuration

SMALLEST_BLOCK = 32  # channels that the matrix units take at least, 8 bits each
BLOCK = 128  # channels at a time
INT4_BLOCK = 64  # both halves of unpacked bytes want registers; 128 spill
SMALL_TILES = ((16, (16, 32, 4, 5)), (32, (32, 64, 4, 4)))  # up to so many rows: rows, outputs, warps, stages
TILES = (*SMALL_TILES, (64, (64, 64, 4, 4)), (math.inf, (128, 128, 8, 3)))
TILES_BY_GROUPS = (*SMALL_TILES, (math.inf, (64, 64, 8, 3)))
TILES_OF: dict[str, tuple[tuple[float, Configuration], ...]] = {
    "int8": TILES,
    "int8_weight_only": TILES,
    "float8": TILES,
    "float8 by groups": TILES_BY_GROUPS,
    "int4_weight_only": TILES_BY_GROUPS,
}


def _options() -> dict[str, tuple[Configuration, ...]]:
    """Return for each product and number of rows its tile, then those of other numbers."""
    return {
        f"{product}, up to {limit} rows": (tile, *(other for _, other in tiles if other != tile))
        for product, tiles in TILES_OF.items()
        for limit, tile in tiles
    }


CHOICES = Choices(_options())


def int8_linear_triton(inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 8-bit integers; see the contract in `kernels.quantized_linear`."""
    rows, row_scales = quantize_rows_triton(inputs, torch.int8, inputs.shape[1])
    out, grid, options = _prepare("int8", inputs, weight.values, BLOCK)
    sizes = *out.shape, inputs.shape[1]
    products.int8_kernel[grid](rows, row_scales, weight.values, weight.scales, bias, out, *sizes, **options)
    return out


def int8_weight_only_linear_triton(inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by 8-bit integers; see the contract in `kernels.quantized_linear`."""
    out, grid, options = _prepare("int8_weight_only", inputs, weight.values, BLOCK)
    sizes = *out.shape, inputs.shape[1]
    products.int8_weight_only_kernel[grid](inputs, weight.values, weight.scales, bias, out, *sizes, **options)
    return out


def float8_linear_triton(inputs: torch.Tensor, weight: Float8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 8-bit floats; see the contract in `kernels.quantized_linear`."""
    num_channels = inputs.shape[1]
    group = min(weight.block[1], num_channels)
    rows, row_scales = quantize_rows_triton(inputs, torch.float8_e4m3fn, group)
    is_grouped = group < num_channels
    block_c = block_within(group, BLOCK) if is_grouped else BLOCK
    out, grid, options = _prepare("float8 by groups" if is_grouped else "float8", inputs, weight.values, block_c)
    products.float8_kernel[grid](
        float8_as_bytes(rows), row_scales, float8_as_bytes(weight.values), weight.scales, bias, out,
        *out.shape, num_channels, weight.block[0], group, row_scales.shape[1], GROUPED=is_grouped, **options,
    )  # fmt: skip
    return out


def int4_weight_only_linear_triton(inputs: torch.Tensor, weight: Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by 4-bit integers; see the contract in `kernels.quantized_linear`."""
    block_c = block_within(weight.group, INT4_BLOCK)
    out, grid, options = _prepare("int4_weight_only", inputs, weight.packed, block_c)
    sizes = *out.shape, inputs.shape[1], weight.group
    products.int4_kernel[grid](inputs, weight.packed, weight.scales, weight.zeros, bias, out, *sizes, **options)
    return out


def block_within(group: int, largest: int) -> int:
    """Return how many channels of groups of that size are taken at a time: the largest power of 2 that divides it.

    Raises:
        ValueError: the matrix units take more.
    """
    block = min(largest, group & -group)
    if block < SMALLEST_BLOCK:
        raise ValueError(f"groups of {group} channels: on a GPU they must be a multiple of {SMALLEST_BLOCK}")
    return block


def launch_options(product: str, num_rows: int, block_c: int) -> dict[str, Any]:
    """Return what is constant in a launch with that many rows: narrow tiles of outputs while rows are few.

    Few rows are bound by reading the weight, many by the matrix units. `block_c` does not depend on the number of rows.
    Sums by groups of channels need registers for a group's own sum.
    """
    limit = next(limit for limit, _ in TILES_OF[product] if num_rows <= limit)
    block_t, block_o, warps, stages = CHOICES.of(f"{product}, up to {limit} rows")
    return {"BLOCK_T": block_t, "BLOCK_O": block_o, "BLOCK_C": block_c, "num_warps": warps, "num_stages": stages}


def _prepare(
    product: str, inputs: torch.Tensor, weight: torch.Tensor, block_c: int
) -> tuple[torch.Tensor, tuple[int], Any]:
    """Return an output, the grid that covers it and what is constant in the launch."""
    num_rows, num_outputs = inputs.shape[0], weight.shape[0]
    options = launch_options(product, num_rows, block_c)
    out = torch.empty(num_rows, num_outputs, dtype=inputs.dtype, device=inputs.device)
    grid = triton.cdiv(num_rows, options["BLOCK_T"]) * triton.cdiv(num_outputs, options["BLOCK_O"])
    return out, (grid,), options


TRITON_LINEARS: dict[str, Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]] = {
    "int8": int8_linear_triton,
    "int8_weight_only": int8_weight_only_linear_triton,
    "float8": float8_linear_triton,
    "int4_weight_only": int4_weight_only_linear_triton,
}


def shipped() -> list[Build]:
    """Return every tile of every scheme, for half-precision inputs and models whose channels are multiples of 16."""
    plain = [
        build
        for rows in (16, 32, 64, 128)
        for element in ("bf16", "fp16")
        for build in (*_int8_builds(rows, element), *_float8_builds(rows, element), _int4_build(rows, element))
    ]
    builds = plain + [_with_bias(build) for build in plain if build.types["out"] == "*bf16"]
    return list({build.name: build for build in builds}.values())  # more rows may have the same tile


def _with_bias(build: Build) -> Build:
    constants = {name: value for name, value in build.constants.items() if name != "bias"}
    types = {**build.types, "bias": build.types["out"]}
    return replace(build, name=f"{build.name}, bias", types=types, constants=constants, is_sampled=False)


SIZES = {"num_rows": "i32", "num_outputs": "i32", "num_channels": "i32"}
DIVISIBLE = frozenset({"num_outputs", "num_channels", "group"})


def _build(name: str, kernel: Any, element: str, types: dict[str, str], options: dict[str, Any], **rest: Any) -> Build:
    constants = {key: value for key, value in options.items() if key.isupper()}
    return Build(
        name=f"{name}, {element}, {options['BLOCK_T']} x {options['BLOCK_O']}",
        kernel=kernel,
        types=types | {"scales": "*fp32", "out": f"*{element}"} | SIZES,
        constants=constants | {"bias": None},
        divisible=DIVISIBLE & types.keys() | {"num_outputs", "num_channels"},
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        is_sampled=element == "bf16" and options["num_warps"] == 8,  # the largest tiles
        **rest,
    )


def _int8_builds(rows: int, element: str) -> list[Build]:
    options = launch_options("int8", rows, BLOCK)  # and those of weights only: their tables are one
    both = {"rows": "*i8", "row_scales": "*fp32", "values": "*i8"}
    only = {"inputs": f"*{element}", "values": "*i8"}
    return [
        _build("int8", products.int8_kernel, element, both, options),
        _build("int8 weight only", products.int8_weight_only_kernel, element, only, options),
    ]


def _float8_builds(rows: int, element: str) -> list[Build]:
    return [
        _build(
            f"{stored} {'in blocks' if is_grouped else 'by outputs'}",
            products.float8_kernel,
            element,
            {"rows": f"*{stored}", "row_scales": "*fp32", "values": f"*{stored}"}
            | dict.fromkeys(("block_rows", "group", "num_groups"), "i32"),
            launch_options("float8 by groups" if is_grouped else "float8", rows, BLOCK) | {"GROUPED": is_grouped},
            capabilities=capabilities,
        )
        for is_grouped in (False, True)
        for stored, capabilities in (("fp8e4nv", (90, 100)), ("u8", (80,)))
    ]


def _int4_build(rows: int, element: str) -> Build:
    types = {"inputs": f"*{element}", "packed": "*u8", "zeros": "*u8", "group": "i32"}
    return _build("int4", products.int4_kernel, element, types, launch_options("int4_weight_only", rows, INT4_BLOCK))
