"""Add low-rank updates to rows of a projection's output, each row by its own adapter.

    out[t, s + o] += sum_q up[o, q] * (sum_c down[q, c] * x[t, c])

for every row t of a group, and every part of its adapter: outputs s .. s + O - 1, with its own rows q of `down`. A
scale has been multiplied into `up`. Rows without a group are not touched.

Source: LoRA (arXiv 2106.09685); many adapters in one batch, Punica (arXiv 2310.18547).
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from kernels.lora.grouped import lora_grouped
from kernels.lora.reference import lora_reference
from kernels.lora.update import LowRankUpdate, RowGroup, UpdatePart

__all__ = ["Lora", "LowRankUpdate", "RowGroup", "UpdatePart", "lora_grouped", "lora_reference", "select"]


class Lora(Protocol):
    """Signature of the operation."""

    def __call__(self, out: torch.Tensor, inputs: torch.Tensor, groups: Sequence[RowGroup]) -> None:
        """Add in place.

        Args:
            out: [T, O], contiguous; changed.
            inputs: [T, C].
            groups: rows and what is added to them; no row is in two groups.
        """
        ...


def select(_device: torch.device) -> Lora:
    """Return the implementation for tensors on a device: one of torch's operations serves all of them."""
    return lora_grouped
