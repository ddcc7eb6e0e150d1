"""Weights of 8-bit integers in the order in which the CPU's tiles read them.

Knows the layout. Does not know how it is multiplied. A weight [N, K] becomes panels of COLUMNS outputs in which GROUP
of the depth lie together, [N / COLUMNS, K / GROUP, COLUMNS, GROUP], filled up with zeros.
"""

from dataclasses import dataclass

import torch

from kernels.cpu_int8 import GROUP, OFFSET
from kernels.cpu_vectors import COLUMNS
from kernels.linear.packing import aligned


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


def pack_int8(values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> PackedInt8Weight:
    """Copy values [N, K] int8, their outputs' scales [N] and a bias [N] into panels."""
    out_features, depth = values.shape
    num_panels, num_groups = -(-out_features // COLUMNS), -(-depth // GROUP)
    panels = aligned(num_panels, num_groups, COLUMNS, GROUP, dtype=torch.int8)
    for panel in range(num_panels):  # one at a time: the weight is never held twice
        rows = torch.zeros(COLUMNS, num_groups * GROUP, dtype=torch.int8)
        part = values[panel * COLUMNS : (panel + 1) * COLUMNS]
        rows[: len(part), :depth] = part
        panels[panel].copy_(rows.view(COLUMNS, num_groups, GROUP).transpose(0, 1))
    corrections = values.sum(dim=1, dtype=torch.int32) * OFFSET
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
