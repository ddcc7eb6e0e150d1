"""Low-rank updates in plain torch: the truth that other implementations are tested against."""

from collections.abc import Sequence

import torch

from kernels.lora.update import RowGroup


def lora_reference(out: torch.Tensor, inputs: torch.Tensor, groups: Sequence[RowGroup]) -> None:
    """Take one row and one part at a time; see the contract in `kernels.lora`."""
    for group in groups:
        for part in group.update.parts:
            size, rank = part.up.shape
            product = part.up @ group.update.down[part.first : part.first + rank]
            for row in group.rows.tolist():
                out[row, part.start : part.start + size] += product @ inputs[row]
