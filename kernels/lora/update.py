"""What one adapter adds to one projection, and which rows get it.

Knows shapes. Does not know models or files.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(slots=True, frozen=True)
class UpdatePart:
    """The update of a run of outputs.

    Attributes:
        start: index of the first output.
        first: index of the first of this part's rows of `down`.
        up: [n, Q], scaled.
    """

    start: int
    first: int
    up: torch.Tensor


@dataclass(slots=True, frozen=True)
class LowRankUpdate:
    """All parts of one adapter in one projection, whose `down`, [Q1 + Q2 + ..., C], lie below each other."""

    down: torch.Tensor
    parts: tuple[UpdatePart, ...]

    def moved(self, device: torch.device, dtype: torch.dtype) -> "LowRankUpdate":
        """Return the update on a device, in a type."""
        parts = (replace(part, up=part.up.to(device, dtype)) for part in self.parts)
        return LowRankUpdate(self.down.to(device, dtype), tuple(parts))


@dataclass(slots=True, frozen=True)
class RowGroup:
    """The rows, [n] int64 and ascending, that one update is added to."""

    rows: torch.Tensor
    update: LowRankUpdate
