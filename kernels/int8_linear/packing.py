"""Weights of 8-bit integers in the order in which the CPU's tiles read them.

Knows the layout. Does not know how it is multiplied. A weight [N, K] becomes panels of COLUMNS outputs in which GROUP
of the depth lie together, [N / COLUMNS, K / GROUP, COLUMNS, GROUP], filled up with zeros.
"""

from dataclasses import dataclass

import torch

from kernels.cpu_int8 import GROUP, OFFSET
from kernels.cpu_memory import RELEASED_AT_ONCE, WeightMemory, aligned, release
from kernels.cpu_vectors import COLUMNS


@dataclass(slots=True, frozen=True)
class PackedInt8Weight:
    """A quantized linear layer for `int8_linear_cpu`.

    Attributes:
        panels: [P, ceil(K / GROUP), COLUMNS, GROUP] int8, aligned.
        scales: [P COLUMNS] fp32.
        corrections: [P COLUMNS] int32, OFFSET times each output's sum of weights.
        bias: [P COLUMNS] fp32, zeros where there is none.
        out_features: N, at most P COLUMNS.
        in_features: K.
    """

    panels: torch.Tensor
    scales: torch.Tensor
    corrections: torch.Tensor
    bias: torch.Tensor
    out_features: int
    in_features: int


def pack_int8(
    values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, memory: WeightMemory | None = None
) -> PackedInt8Weight:
    """Copy values [N, K] int8, their outputs' scales [N] and a bias [N] into panels.

    With `memory` the panels lie there, and the values' own memory is given back as they are copied: they are lost.
    """
    out_features, depth = values.shape
    num_panels, num_groups = -(-out_features // COLUMNS), -(-depth // GROUP)
    panels = (aligned if memory is None else memory.take)(num_panels, num_groups, COLUMNS, GROUP, dtype=torch.int8)
    corrections = torch.empty(out_features, dtype=torch.int32)
    step = max(1, RELEASED_AT_ONCE // (COLUMNS * depth * torch.int32.itemsize))  # what `sum` makes of them
    for first in range(0, num_panels, step):
        rows = values[first * COLUMNS : (first + step) * COLUMNS]
        part = panels[first : first + step]
        padded = torch.zeros(len(part) * COLUMNS, num_groups * GROUP, dtype=torch.int8)
        padded[: len(rows), :depth] = rows
        part.copy_(padded.view(-1, COLUMNS, num_groups, GROUP).transpose(1, 2))
        corrections[first * COLUMNS : (first + step) * COLUMNS] = rows.sum(dim=1, dtype=torch.int32) * OFFSET
        if memory is not None:
            release(rows)
    return PackedInt8Weight(
        panels,
        _filled(scales.float(), num_panels),
        _filled(corrections, num_panels),
        _filled(torch.zeros(out_features) if bias is None else bias.float(), num_panels),
        out_features,
        depth,
    )


def _filled(values: torch.Tensor, num_panels: int) -> torch.Tensor:
    whole = torch.zeros(num_panels * COLUMNS, dtype=values.dtype)
    whole[: len(values)] = values
    return whole
