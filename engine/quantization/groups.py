"""Columns of an integer weight brought into the order that kernels take: groups side by side, all of one size.

Knows groups and columns. Does not know how a format packs them.

A whole weight with act-order only needs sorting. Of a part of its columns a group may hold fewer than others: at a cut
between two groups' edges, or everywhere with act-order, which scatters groups over all inputs. Such groups are filled
up with columns that are zero, whatever input they are given.
"""

from dataclasses import dataclass

import torch

KERNEL_GROUP = 16  # groups of a GPU's kernels are multiples of it, if the checkpoint's are


@dataclass(slots=True, frozen=True)
class GroupedColumns:
    """Columns by group.

    Attributes:
        values: [O, G' size], unsigned.
        scales: [O, G'] fp32.
        zeros: [O, G'].
        size: columns of a group.
        order: [G' size], the input that each column is meant for; None where column c is for input c.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    size: int
    order: torch.Tensor | None


def by_group(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor, size: int
) -> GroupedColumns:
    """Bring columns into groups.

    Args:
        values: [O, C], unsigned integers; some of a weight's columns or all.
        scales: [O, G] of all groups.
        zeros: [O, G] likewise.
        groups: [C], the group of each column.
        size: columns of a group in the whole weight.

    Raises:
        ValueError: a group that does not exist, or one of more columns.
    """
    groups = groups.long()
    if int(groups.min()) < 0 or int(groups.max()) >= scales.shape[1] or int(groups.bincount().max()) > size:
        raise ValueError(f"g_idx does not give {size} inputs to each of {scales.shape[1]} groups")
    used, counts = groups.unique(return_counts=True)
    order = groups.argsort(stable=True)
    scales, zeros = scales[:, used].contiguous(), zeros[:, used].contiguous()
    step = KERNEL_GROUP if size % KERNEL_GROUP == 0 else 2
    width = -(-int(counts.max()) // step) * step
    if bool((counts == width).all()):
        if torch.equal(order, torch.arange(len(order))):
            return GroupedColumns(values, scales, zeros, width, None)
        return GroupedColumns(values[:, order], scales, zeros, width, order)
    places = torch.arange(width).expand(len(used), width)
    is_column = (places < counts.unsqueeze(1)).flatten()
    firsts = (counts.cumsum(0) - counts).unsqueeze(1)
    order = order[(firsts + places).flatten().masked_fill(~is_column, 0)]
    filled = torch.where(is_column, values[:, order], zeros.repeat_interleave(width, dim=1).to(values.dtype))
    return GroupedColumns(filled, scales, zeros, width, order)


def regular_groups(inputs: range, size: int) -> torch.Tensor:
    """Return the group of each of these inputs, where groups are neighbours."""
    return torch.arange(inputs.start, inputs.stop) // size
