"""Quantized weights as parts of projections: joining parts that were quantized alone, and undoing it all.

Knows the kernels' layouts. Does not know checkpoints or models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight, Weight


@dataclass(slots=True, frozen=True)
class PartWeight:
    """The weight of some outputs of a projection.

    Attributes:
        weight: the kernels' form, or a plain [O, C] tensor where they have none for it.
        scheme: how the kernels multiply by it, one of their `SCHEMES`; empty for a plain weight.
        order: the input that each column of the weight is meant for; None where column c is for input c. An input may
            be named by further columns, which are zero.
    """

    weight: Weight | torch.Tensor
    scheme: str = ""
    order: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing quantized about it."""
        return isinstance(self.weight, torch.Tensor)

    def to(self, device: torch.device) -> "PartWeight":
        """Return the same on a device."""
        order = None if self.order is None else self.order.to(device)
        return replace(_map_tensors(self, lambda tensor: tensor.to(device)), order=order)

    def dequantize(self) -> torch.Tensor:
        """Return the weight as the model means it, [O, C] fp32."""
        wide = self.weight.float() if isinstance(self.weight, torch.Tensor) else self.weight.dequantize()
        if self.order is None:
            return wide
        num_inputs = int(self.order.max()) + 1
        return wide.new_zeros(len(wide), num_inputs).index_add_(1, self.order.long(), wide)


def join(parts: Sequence[PartWeight]) -> PartWeight:
    """Return one weight for the outputs of all parts in turn.

    It is plain where the parts differ in kind, scheme, groups or order of inputs: no kernel takes such a mixture.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(_is_alike(first, part) for part in parts):
        joined = JOINS[type(first.weight)]([part.weight for part in parts])
        if joined is not None:
            return replace(first, weight=joined)
    return PartWeight(torch.cat([part.dequantize() for part in parts]))


def stack_rows(num_rows: int, parts: Iterable[PartWeight]) -> PartWeight:
    """Return one weight made of the rows of all parts, which have scales for each row; no two parts exist at once.

    Joining a list of them would hold each row twice, and leave holes in memory between what was freed.
    """
    stacked: PartWeight | None = None
    row = 0
    for part in parts:
        stacked = stacked or _map_tensors(part, lambda rows: rows.new_empty(num_rows, *rows.shape[1:]))
        count = 0
        for whole, rows in zip(_tensors(stacked), _tensors(part), strict=True):
            count = len(rows)
            whole[row : row + count] = rows
        row += count
    assert stacked is not None
    assert row == num_rows
    return stacked


def _tensors(part: PartWeight) -> list[torch.Tensor]:
    if isinstance(part.weight, torch.Tensor):
        return [part.weight]
    values = [getattr(part.weight, item.name) for item in fields(part.weight)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _map_tensors(part: PartWeight, change: Callable[[torch.Tensor], torch.Tensor]) -> PartWeight:
    if isinstance(part.weight, torch.Tensor):
        return replace(part, weight=change(part.weight))
    values = {item.name: getattr(part.weight, item.name) for item in fields(part.weight)}
    changed = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(part, weight=replace(part.weight, **changed))


def _is_alike(one: PartWeight, other: PartWeight) -> bool:
    if type(one.weight) is not type(other.weight) or one.scheme != other.scheme:
        return False
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)


def _join_plain(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts))


def _join_int8(parts: Sequence[Int8Weight]) -> Int8Weight:
    return Int8Weight(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))


def _join_int4(parts: Sequence[Int4Weight]) -> Int4Weight | None:
    group = parts[0].group
    if any(part.group != group for part in parts):
        return None
    packed = torch.cat([part.packed for part in parts])
    return Int4Weight(packed, torch.cat([p.scales for p in parts]), torch.cat([p.zeros for p in parts]), group)


def _join_float8(parts: Sequence[Float8Weight]) -> Float8Weight | None:
    height, width = parts[0].block
    if any(part.block[1] != width for part in parts):
        return None
    fits = all(part.block[0] == height and len(part.values) % height == 0 for part in parts[:-1])
    if not fits or parts[-1].block[0] != height:
        parts, height = [_by_output(part) for part in parts], 1
    values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    return Float8Weight(values, torch.cat([part.scales for part in parts]), (height, width))


def _by_output(part: Float8Weight) -> Float8Weight:
    """Return the same weight with scales for each output."""
    scales = part.scales.repeat_interleave(part.block[0], dim=0)[: len(part.values)]
    return Float8Weight(part.values, scales.contiguous(), (1, part.block[1]))


JOINS = {torch.Tensor: _join_plain, Int8Weight: _join_int8, Int4Weight: _join_int4, Float8Weight: _join_float8}
