"""Low-rank updates in torch: each group's rows are gathered, go through two thin products, and are added back.

All parts share the gathered rows and the first product. A group that has every row is neither gathered nor scattered.
"""

from collections.abc import Sequence

import torch

from kernels.lora.update import RowGroup


def lora_grouped(out: torch.Tensor, inputs: torch.Tensor, groups: Sequence[RowGroup]) -> None:
    """Work group by group; see the contract in `kernels.lora`."""
    for group in groups:
        has_all = len(group.rows) == len(inputs)
        gathered = inputs if has_all else inputs.index_select(0, group.rows)
        narrow = gathered @ group.update.down.t()
        for part in group.update.parts:
            size, rank = part.up.shape
            target = out.narrow(1, part.start, size)
            hidden = narrow.narrow(1, part.first, rank)
            if has_all:
                target.addmm_(hidden, part.up.t())
            else:
                target.index_add_(0, group.rows, hidden @ part.up.t())
