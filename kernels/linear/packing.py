"""Weights in the order in which the CPU's tiles read them.

Knows the layout. Does not know how it is multiplied. A weight [N, K] becomes panels of COLUMNS outputs,
[N / COLUMNS, K, COLUMNS], filled up with zeros: a tile then reads memory from one end to the other.
"""

from dataclasses import dataclass

import torch

from kernels.cpu_vectors import COLUMNS

ALIGNMENT = 64  # bytes, of the widest vector


@dataclass(slots=True, frozen=True)
class PackedWeight:
    """A linear layer for `linear_cpu`.

    Attributes:
        panels: [P, K, COLUMNS] fp32, aligned.
        bias: [P COLUMNS] fp32, zeros where there is none.
        out_features: N, at most P COLUMNS.
    """

    panels: torch.Tensor
    bias: torch.Tensor
    out_features: int

    @property
    def in_features(self) -> int:
        """K."""
        return self.panels.shape[1]


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedWeight:
    """Copy a weight, [N, K] fp32, and its bias, [N], into panels."""
    out_features, depth = weight.shape
    num_panels = -(-out_features // COLUMNS)
    panels = aligned(num_panels, depth, COLUMNS)
    whole = out_features // COLUMNS
    rows = whole * COLUMNS
    panels[:whole].copy_(weight[:rows].view(whole, COLUMNS, depth).transpose(1, 2))
    if rows < out_features:
        panels[whole].zero_()
        panels[whole, :, : out_features - rows].copy_(weight[rows:].t())
    starts = torch.zeros(num_panels * COLUMNS)
    if bias is not None:
        starts[:out_features].copy_(bias)
    return PackedWeight(panels, starts, out_features)


def aligned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return undefined memory that begins at a multiple of ALIGNMENT."""
    size = dtype.itemsize
    count = int(torch.Size(shape).numel())
    memory = torch.empty(count + ALIGNMENT // size, dtype=dtype)
    first = -memory.data_ptr() % ALIGNMENT // size
    return memory[first : first + count].view(shape)
