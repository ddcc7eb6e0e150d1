"""Linear layers of few rows on a GPU: bound by reading the weight, once.

A decode step's product takes each number of the weight for a few multiplications only, so what counts is that bytes
are on their way all the time: before its inputs are there a program fetches weights already (`dependent_launch`). More
rows, and fp32, go to torch's own product.

One row is multiplied without tensor cores. Where there are fewer tiles of outputs than multiprocessors, each is split
over the channels; the program that ends last adds up the parts, always in the same order.
"""

from typing import Any

import torch
import triton
from torch.nn import functional as F

from kernels.aot import CAPABILITIES, Build
from kernels.dependent_launch import launch_options
from kernels.gated_activation.triton_kernel import gated_activation_triton
from kernels.linear import triton_programs as programs
from kernels.split_sums import UNSPLIT_FROM, choose_num_splits, counters_on
from kernels.tuning import Choices

Tile = tuple[int, int, int, int]  # outputs, channels, warps, stages
MOST_ROWS = 64  # of every tile: Hopper multiplies no fewer at full speed, whatever the batch
MANY_OUTPUTS = 16384
TILES: dict[str, tuple[Tile, ...]] = {  # the literal one first
    "1 row": ((2, 2048, 2, 1), (1, 4096, 4, 1)),
    "1 row, gated": ((1, 1024, 2, 1), (2, 2048, 4, 1)),
    "some rows": ((64, 128, 4, 5), (64, 128, 4, 4)),
    "some rows, many outputs": ((128, 64, 4, 4), (64, 128, 4, 4)),
    "some rows, gated": ((64, 64, 4, 5), (128, 64, 8, 4)),
}
CHOICES = Choices(TILES)


def streamed_linear_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Map [T, K] to [T, N]; see the contract in `kernels.linear`."""
    if not _is_streamed(x):
        answer = F.linear(x, weight, bias)
        return answer if out is None else out.copy_(answer)
    if out is None:
        out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    return _multiply(x, weight, bias, out, "")


def gated_linear_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """Map [T, K] to [T, N] by a weight [2 N, K]: what its first half gives, activated, times what the other gives.

    See the contracts in `kernels.linear` and `kernels.gated_activation`; what lies between them is not rounded.
    """
    if not _is_streamed(x):
        return gated_activation_triton(activation, F.linear(x, weight, bias))
    return _multiply(x, weight, bias, torch.empty(len(x), len(weight) // 2, dtype=x.dtype, device=x.device), activation)


def _is_streamed(x: torch.Tensor) -> bool:
    return 0 < len(x) <= MOST_ROWS and x.dtype != torch.float32 and x.shape[1] % 16 == 0


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, activation: str
) -> torch.Tensor:
    (num_rows, width), num_outputs = x.shape, out.shape[1]
    outputs, channels, warps, stages = CHOICES.of(_class(num_rows, num_outputs, activation))
    num_tiles = triton.cdiv(num_outputs, outputs)
    constants: dict[str, Any] = {"BLOCK_OUTPUTS": outputs, "BLOCK_CHANNELS": channels, "ACTIVATION": activation}
    constants |= {"IS_EVEN": width % channels == 0, "num_warps": warps, "num_stages": stages}
    constants |= launch_options(x.device)
    if num_rows == 1:
        programs.multiply_row[(num_tiles,)](x, weight, bias, out, num_outputs, width, **constants)
        return out
    splits = 1 if activation else choose_num_splits(num_tiles, width // channels, 1, x.device)
    num_parts = num_tiles * splits * MOST_ROWS * outputs if splits > 1 else 0
    parts = torch.empty(num_parts, dtype=torch.float32, device=x.device)
    sizes = num_rows, num_outputs, width, x.stride(0)
    programs.multiply_rows[num_tiles, splits](
        x, weight, bias, out, parts, counters_on(x.device), *sizes, BLOCK_ROWS=MOST_ROWS, SPLITS=splits, **constants
    )
    return out


def _class(num_rows: int, num_outputs: int, activation: str) -> str:
    rows = "1 row" if num_rows == 1 else "some rows"
    many = ", many outputs" if num_rows > 1 and num_outputs >= MANY_OUTPUTS else ""
    return f"{rows}, gated" if activation else rows + many


def shipped() -> list[Build]:
    """Return every tile, whole and split, in the types of models."""
    return [
        _build(element, name, tile, splits)
        for element in ("bf16", "fp16")
        for name, tiles in TILES.items()
        for tile in tiles
        for splits in ((1, 2) if name == "some rows" else (1,))
    ]


def _build(element: str, name: str, tile: Tile, splits: int) -> Build:
    outputs, channels, warps, stages = tile
    types = dict.fromkeys(("x", "weight", "out"), f"*{element}") | {"num_outputs": "i32", "width": "i32"}
    constants = {"bias": None, "BLOCK_OUTPUTS": outputs, "BLOCK_CHANNELS": channels, "IS_EVEN": True}
    constants["ACTIVATION"] = "silu" if name.endswith("gated") else ""
    is_row = name.startswith("1 row")
    if not is_row:
        types |= {"parts": "*fp32", "counters": "*i32", "num_rows": "i32", "row_stride": "i32"}
        constants |= {"BLOCK_ROWS": MOST_ROWS, "SPLITS": splits}
    return Build(
        f"{element}, {name}, {tile}, {splits} splits",
        programs.multiply_row if is_row else programs.multiply_rows,
        types,
        constants,
        frozenset({"width", "row_stride"} & types.keys()),
        num_warps=warps,
        num_stages=stages,
        capabilities=CAPABILITIES if splits == 1 else tuple(each for each in CAPABILITIES if each < 10 * UNSPLIT_FROM),
        is_sampled=element == "bf16" and tile == TILES[name][0] and splits == 1,
    )
