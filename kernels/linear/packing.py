"""Weights in the order in which the CPU's tiles read them.

Knows the layout. Does not know how it is multiplied. A weight [N, K] becomes panels of COLUMNS outputs,
[N / COLUMNS, K, COLUMNS], filled up with zeros: a tile then reads memory from one end to the other.

A weight in bf16 or fp16, as in most checkpoints, stays in that type: half the memory to read, and the same products in
fp32.
"""

from dataclasses import dataclass

import torch

from kernels.cpu_memory import RELEASED_AT_ONCE, WeightMemory, aligned, release
from kernels.cpu_vectors import BFLOATS, COLUMNS, FLOATS, HALVES, LANES, VECTORS, has_halves

KINDS = {torch.float32: FLOATS, torch.bfloat16: BFLOATS} | ({torch.float16: HALVES} if has_halves() else {})


@dataclass(slots=True, frozen=True)
class PackedWeight:
    """A linear layer for `linear_cpu`.

    Attributes:
        panels: [P, K, COLUMNS] fp32, bf16 or fp16, aligned; in bf16 columns c and c + LANES are neighbours.
        bias: [P COLUMNS] fp32, zeros where there is none.
        out_features: N, at most P COLUMNS.
    """

    panels: torch.Tensor
    bias: torch.Tensor
    out_features: int

    @property
    def kind(self) -> int:
        """What its numbers are, as the tiles call it."""
        return KINDS[self.panels.dtype]

    @property
    def in_features(self) -> int:
        """K."""
        return self.panels.shape[1]


def pack(weight: torch.Tensor, bias: torch.Tensor | None, memory: WeightMemory | None = None) -> PackedWeight:
    """Copy a weight, [N, K] in fp32, bf16 or fp16, and its bias, [N], into panels; fp16 becomes fp32 on older CPUs.

    With `memory` the panels lie there, and the weight's own memory is given back as it is copied: its values are lost,
    and beyond one weight there are never more than RELEASED_AT_ONCE bytes.
    """
    out_features, depth = weight.shape
    num_panels = -(-out_features // COLUMNS)
    dtype = weight.dtype if weight.dtype in KINDS else torch.float32
    panels = (aligned if memory is None else memory.take)(num_panels, depth, COLUMNS, dtype=dtype)
    step = max(1, RELEASED_AT_ONCE // (COLUMNS * depth * weight.itemsize))
    for first in range(0, num_panels, step):
        rows = weight[first * COLUMNS : (first + step) * COLUMNS]
        _fill(panels[first : first + step], rows)
        if memory is not None:
            release(rows)
    starts = torch.zeros(num_panels * COLUMNS)
    if bias is not None:
        starts[:out_features].copy_(bias)
    return PackedWeight(panels, starts, out_features)


def _fill(panels: torch.Tensor, rows: torch.Tensor) -> None:
    whole = len(rows) // COLUMNS
    _turn(panels[:whole], rows[: whole * COLUMNS])
    if whole < len(panels):
        last = rows.new_zeros(COLUMNS, rows.shape[1])
        last[: len(rows) - whole * COLUMNS] = rows[whole * COLUMNS :]
        _turn(panels[whole:], last)


def _turn(panels: torch.Tensor, rows: torch.Tensor) -> None:
    turned = rows.view(len(panels), COLUMNS, rows.shape[1]).transpose(1, 2)
    if panels.dtype == torch.bfloat16:
        panels, turned = panels.unflatten(2, (LANES, VECTORS)).transpose(2, 3), turned.unflatten(2, (VECTORS, LANES))
    panels.copy_(turned)
