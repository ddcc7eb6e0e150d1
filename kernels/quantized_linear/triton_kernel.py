"""Launching the quantized products of `triton_products`: tiles by the number of rows, and what is compiled ahead.

Knows shapes and layouts. Does not know how a tile is computed.

Many rows are multiplied by torch and a weight that is widened for that product. A wide weight is written and read once
more, some 1.2 ps a weight on an H200 (4.2 TB/s); a row of a tile takes some 3 fs a weight more than one of torch's
product (348 beside 790 TFLOP/s): that is even at 370 rows.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
from torch.nn import functional as F

from kernels.aot import Build, constants_among
from kernels.quantize_rows.triton_kernel import quantize_rows_triton
from kernels.quantized_linear import triton_products as products
from kernels.quantized_linear import triton_widening
from kernels.quantized_linear.weights import Float8Weight, Int4Weight, Int8Weight
from kernels.split_sums import MOST_SPLITS, UNSPLIT_FROM, choose_num_splits, counters_on
from kernels.stacked_experts.triton_kernel import MOST_EXPERTS, Grouped
from kernels.triton_math import float8_as_bytes
from kernels.tuning import Choices, Configuration

SMALLEST_BLOCK = 32  # channels that the matrix units take at least, 8 bits each
BLOCK = 128  # channels at a time
MOST_TILED_ROWS = 384  # more are multiplied by the widened weight
MOST_SPLIT_ROWS = 64
SPLIT_UP_TO = 4  # programs a multiprocessor
# Up to so many rows: rows, outputs, warps, stages.
SMALL_TILES = ((16, (16, 64, 4, 5)), (32, (32, 64, 4, 4)))
TILES = (*SMALL_TILES, (64, (64, 64, 4, 5)), (128, (64, 128, 4, 4)), (math.inf, (128, 128, 8, 3)))
WEIGHT_ONLY_TILES = (*SMALL_TILES, (64, (64, 64, 4, 4)), (128, (64, 128, 4, 4)), (math.inf, (128, 128, 8, 3)))
FLOAT8_TILES = (*SMALL_TILES, (64, (64, 64, 4, 5)), (math.inf, (128, 128, 8, 3)))  # on sm_100 64 x 128 spills
TILES_BY_GROUPS = (*SMALL_TILES, (math.inf, (64, 64, 8, 3)))
INT4_TILES = ((16, (16, 64, 4, 4)), (math.inf, (32, 64, 4, 4)))
TILES_OF: dict[str, tuple[tuple[float, Configuration], ...]] = {
    "int8": TILES,
    "int8_weight_only": WEIGHT_ONLY_TILES,
    "float8": FLOAT8_TILES,
    "float8 by groups": TILES_BY_GROUPS,
    "int4_weight_only": INT4_TILES,
}


def _options() -> dict[str, tuple[Configuration, ...]]:
    """Return for each product and number of rows its tile, then those of other numbers."""
    return {
        f"{product}, up to {limit} rows": (tile, *(other for _, other in tiles if other != tile))
        for product, tiles in TILES_OF.items()
        for limit, tile in tiles
    }


CHOICES = Choices(_options())


def int8_linear_triton(
    inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None, grouped: Grouped | None = None
) -> torch.Tensor:
    """Multiply 8-bit integers; see the contract in `kernels.quantized_linear`, and `Grouped` for stacks of weights."""
    rows, row_scales = quantize_rows_triton(inputs, torch.int8, inputs.shape[1])
    out, grid, arguments = _prepare("int8", inputs, weight.values, BLOCK, grouped)
    products.int8_kernel[grid](rows, row_scales, weight.values, weight.scales, bias, out, **arguments)
    return out


def int8_weight_only_linear_triton(
    inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None, grouped: Grouped | None = None
) -> torch.Tensor:
    """Multiply by 8-bit integers; see `int8_linear_triton`."""
    if grouped is None and len(inputs) > MOST_TILED_ROWS:
        return _widened(inputs, weight, bias)
    out, grid, arguments = _prepare("int8_weight_only", inputs, weight.values, BLOCK, grouped)
    products.int8_weight_only_kernel[grid](inputs, weight.values, weight.scales, bias, out, **arguments)
    return out


def float8_linear_triton(
    inputs: torch.Tensor, weight: Float8Weight, bias: torch.Tensor | None, grouped: Grouped | None = None
) -> torch.Tensor:
    """Multiply 8-bit floats; see `int8_linear_triton`."""
    num_channels = inputs.shape[1]
    group = min(weight.block[1], num_channels)
    rows, row_scales = quantize_rows_triton(inputs, torch.float8_e4m3fn, group)
    is_grouped = group < num_channels
    block_c = block_within(group, BLOCK) if is_grouped else BLOCK
    product = "float8 by groups" if is_grouped else "float8"
    out, grid, arguments = _prepare(product, inputs, weight.values, block_c, grouped)
    blocks = {"block_rows": weight.block[0], "group": group, "num_groups": row_scales.shape[1], "GROUPED": is_grouped}
    values = float8_as_bytes(rows), row_scales, float8_as_bytes(weight.values), weight.scales
    products.float8_kernel[grid](*values, bias, out, **arguments, **blocks)
    return out


def int4_weight_only_linear_triton(
    inputs: torch.Tensor, weight: Int4Weight, bias: torch.Tensor | None, grouped: Grouped | None = None
) -> torch.Tensor:
    """Multiply by 4-bit integers; see `int8_linear_triton`."""
    block_c = block_within(weight.group, BLOCK)
    if grouped is None and len(inputs) > MOST_TILED_ROWS:
        return _widened(inputs, weight, bias)
    out, grid, arguments = _prepare("int4_weight_only", inputs, weight.packed, block_c, grouped)
    values = inputs, weight.packed, weight.scales, weight.zeros
    products.int4_kernel[grid](*values, bias, out, group=weight.group, **arguments)
    return out


def _widened(inputs: torch.Tensor, weight: Int8Weight | Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(
        inputs, triton_widening.widen(weight, inputs.dtype), None if bias is None else bias.to(inputs.dtype)
    )


def block_within(group: int, largest: int) -> int:
    """Return how many channels of groups of that size are taken at a time: the largest power of 2 that divides it.

    Raises:
        ValueError: the matrix units take more.
    """
    block = min(largest, group & -group)
    if block < SMALLEST_BLOCK:
        raise ValueError(f"groups of {group} channels: on a GPU they must be a multiple of {SMALLEST_BLOCK}")
    return block


def launch_options(product: str, num_rows: float, block_c: int) -> dict[str, Any]:
    """Return what is constant in a launch with that many rows: narrow tiles of outputs while rows are few.

    Few rows are bound by reading the weight, many by the matrix units. `block_c` does not depend on the number of rows.
    Sums by groups of channels need registers for a group's own sum.
    """
    limit = next(limit for limit, _ in TILES_OF[product] if num_rows <= limit)
    block_t, block_o, warps, stages = CHOICES.of(f"{product}, up to {limit} rows")
    return {"BLOCK_T": block_t, "BLOCK_O": block_o, "BLOCK_C": block_c, "num_warps": warps, "num_stages": stages}


UNSPLIT = {"parts": None, "counters": None}
ALONE = dict.fromkeys(("pairs", "counts", "num_experts", "num_chosen", "BLOCK_E"))  # what tells of experts, without


def _prepare(
    product: str, inputs: torch.Tensor, weight: torch.Tensor, block_c: int, grouped: Grouped | None
) -> tuple[torch.Tensor, tuple[int, int], dict[str, Any]]:
    """Return an output, the grid that covers it, and the launch's sizes and constants."""
    num_rows, num_channels = inputs.shape
    num_outputs = weight.shape[-2]
    options = launch_options(product, num_rows if grouped is None else grouped.share, block_c)
    height = options["BLOCK_T"]
    num_answers = num_rows if grouped is None else len(grouped.pairs)
    num_tiles = triton.cdiv(num_rows, height) if grouped is None else grouped.num_tiles(height)
    num_tiles *= triton.cdiv(num_outputs, options["BLOCK_O"])
    out = torch.empty(num_answers, num_outputs, dtype=inputs.dtype, device=inputs.device)
    sizes = {"num_rows": num_rows, "num_outputs": num_outputs, "num_channels": num_channels}
    experts = ALONE if grouped is None else grouped.arguments
    is_split = grouped is None and num_rows <= MOST_SPLIT_ROWS
    splits = choose_num_splits(num_tiles, num_channels // block_c, SPLIT_UP_TO, inputs.device) if is_split else 1
    shares = UNSPLIT if splits == 1 else _shares(product, num_tiles * splits * height * options["BLOCK_O"], out.device)
    return out, (num_tiles, splits), sizes | experts | options | shares | {"SPLITS": splits}


def _shares(product: str, num_sums: int, device: torch.device) -> dict[str, Any]:
    dtype = torch.int32 if product == "int8" else torch.float32
    return {"parts": torch.empty(num_sums, dtype=dtype, device=device), "counters": counters_on(device)}


TRITON_LINEARS: dict[str, Callable[..., torch.Tensor]] = {
    "int8": int8_linear_triton,
    "int8_weight_only": int8_weight_only_linear_triton,
    "float8": float8_linear_triton,
    "int4_weight_only": int4_weight_only_linear_triton,
}


def shipped() -> list[Build]:
    """Return every tile of every scheme, for half-precision inputs and models whose channels are multiples of 16.

    With a bias, and for experts, in the type that such checkpoints are published in: 4-bit ones fp16, others bf16.
    """
    few = [build for rows in (16, 32, MOST_SPLIT_ROWS) for build in _builds_of(rows)]
    plain = [*few, *(build for rows in (128, 256) for build in _builds_of(rows))]
    varied = [change(build) for build in plain if _is_usual(build) for change in (_with_bias, _of_experts)]
    varied += [_split(build) for build in few if _is_usual(build)]
    tiles = {build.name: build for build in plain + varied}.values()  # more rows may have the same tile
    return [*tiles, *(build for element in ("bf16", "fp16") for build in triton_widening.builds(element))]


def _builds_of(rows: int) -> list[Build]:
    return [
        build
        for element in ("bf16", "fp16")
        for build in (*_int8_builds(rows, element), *_float8_builds(rows, element), _int4_build(rows, element))
    ]


def _is_usual(build: Build) -> bool:
    return build.types["out"] == ("*fp16" if "packed" in build.types else "*bf16")


def _with_bias(build: Build) -> Build:
    constants = {name: value for name, value in build.constants.items() if name != "bias"}
    types = {**build.types, "bias": build.types["out"]}
    return replace(build, name=f"{build.name}, bias", types=types, constants=constants, is_sampled=False)


def _split(build: Build) -> Build:
    parts = "*i32" if build.kernel is products.int8_kernel else "*fp32"
    constants = {name: value for name, value in build.constants.items() if name not in UNSPLIT}
    return replace(
        build,
        name=f"{build.name}, split",
        types={**build.types, "parts": parts, "counters": "*i32"},
        constants=constants | {"SPLITS": MOST_SPLITS},
        capabilities=tuple(each for each in build.capabilities if each < 10 * UNSPLIT_FROM),
        is_sampled=False,
    )


def _of_experts(build: Build) -> Build:
    types = {"pairs": "*i32", "counts": "*i32", "num_experts": "i32", "num_chosen": "i32"}
    constants = {name: value for name, value in build.constants.items() if name not in ALONE}
    return replace(
        build,
        name=f"{build.name}, experts",
        types={**build.types, **types},
        constants=constants | {"BLOCK_E": MOST_EXPERTS},
        is_sampled=False,
    )


SIZES = {"num_rows": "i32", "num_outputs": "i32", "num_channels": "i32"}
DIVISIBLE = frozenset({"num_outputs", "num_channels", "group"})


def _build(name: str, kernel: Any, element: str, types: dict[str, str], options: dict[str, Any], **rest: Any) -> Build:
    constants = constants_among(options)
    return Build(
        name=f"{name}, {element}, {options['BLOCK_T']} x {options['BLOCK_O']}",
        kernel=kernel,
        types=types | {"scales": "*fp32", "out": f"*{element}"} | SIZES,
        constants=constants | ALONE | UNSPLIT | {"bias": None, "SPLITS": 1},
        divisible=DIVISIBLE & types.keys() | {"num_outputs", "num_channels"},
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        is_sampled=element == "bf16" and options["num_warps"] == 8,  # the largest tiles
        **rest,
    )


def _int8_builds(rows: int, element: str) -> list[Build]:
    options, only_options = (launch_options(product, rows, BLOCK) for product in ("int8", "int8_weight_only"))
    both = {"rows": "*i8", "row_scales": "*fp32", "values": "*i8"}
    only = {"inputs": f"*{element}", "values": "*i8"}
    return [
        _build("int8", products.int8_kernel, element, both, options),
        _build("int8 weight only", products.int8_weight_only_kernel, element, only, only_options),
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
    return _build("int4", products.int4_kernel, element, types, launch_options("int4_weight_only", rows, BLOCK))
