"""Rounding plain weights as they are loaded: one class a scheme.

Knows numbers. Does not know which layers are quantized or where weights come from.

Sources: W8A8 with scales found as rows come, ZeroQuant (arXiv 2206.01861); e4m3, FP8 formats (arXiv 2209.05433);
blocks, DeepSeek-V3 (arXiv 2412.19437); groups of 4-bit weights, GPTQ (arXiv 2210.17323), section 4.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from engine.quantization.config import LoadScheme
from engine.quantization.layout import Cut
from engine.quantization.parts import part_of
from engine.quantization.weights import PartWeight, stack_rows
from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight

BLOCK = 128  # of e4m3, on both sides
SMALLEST_GROUP = 8
Block = tuple[int, int]  # outputs and inputs that share a scale
ROUNDED_VALUES = 2**17  # that are rounded at once: half a megabyte in fp32, of which rounding takes a few


class Quantizer(Protocol):
    """Rounds the weights of one projection; each row alone where `is_row_wise`."""

    @property
    def is_row_wise(self) -> bool:
        """Whether some rows of a weight can be rounded before the others are there."""
        ...

    def block(self, num_outputs: int, num_inputs: int, /) -> Block:
        """Return how many neighbouring outputs and inputs of a weight [O, C] share a scale."""
        ...

    def quantize(self, weight: torch.Tensor, block: Block, /) -> PartWeight:
        """Round a weight [O, C], or whole blocks of one; what the scheme cannot hold stays plain."""
        ...


def round_cut(quantizer: Quantizer, cut: Cut, read: Callable[[Cut], Iterable[torch.Tensor]]) -> PartWeight:
    """Return a part of a weight [O, C], rounded as in the whole: whole blocks are read, and the part kept.

    Beyond the result there are never more than a few times ROUNDED_VALUES numbers where the scheme is row-wise.

    Args:
        quantizer: rounds.
        cut: the part.
        read: gives what is asked of the weight in pieces, [n, C'], of which each is valid until the next one.
    """
    block, window = quantizer.block(*cut.shape), whole_blocks(quantizer, cut)
    inputs = range(cut.inputs.start - window.inputs.start, cut.inputs.stop - window.inputs.start)
    pieces = read(window)
    if not quantizer.is_row_wise:
        whole = torch.cat([piece.to(torch.float32, copy=True) for piece in pieces])
        first = cut.outputs.start - window.outputs.start
        return part_of(quantizer.quantize(whole, block), range(first, first + len(cut.outputs)), inputs)
    runs = (rows for piece in pieces for rows in piece.split(max(1, ROUNDED_VALUES // piece.shape[1])))
    rounded = (quantizer.quantize(rows.float(), block) for rows in runs)
    return stack_rows(len(cut.outputs), (part_of(part, range(_num_rows(part)), inputs) for part in rounded))


def whole_blocks(quantizer: Quantizer, cut: Cut) -> Cut:
    """Return the cut with all of the numbers that share a scale with one of its own."""
    ranges = (
        range(run.start // size * size, min(total, -(-run.stop // size) * size))
        for run, size, total in zip((cut.outputs, cut.inputs), quantizer.block(*cut.shape), cut.shape, strict=True)
    )
    return Cut(cut.shape, *ranges)


def _num_rows(part: PartWeight) -> int:
    return len(part.weight) if isinstance(part.weight, torch.Tensor) else len(part.weight.scales)


class Int8Quantizer:
    """One scale for each output."""

    is_row_wise = True

    def __init__(self, scheme: str) -> None:
        """Make weights for the kernels' `scheme`."""
        self.scheme = scheme

    def block(self, _num_outputs: int, num_inputs: int) -> Block:
        """Return a row."""
        return 1, num_inputs

    def quantize(self, weight: torch.Tensor, _block: Block) -> PartWeight:
        """Round to integers within +-127."""
        return PartWeight(Int8Weight.quantize(weight), self.scheme)


class Float8Quantizer:
    """One scale for each output, weight or block of 128 x 128."""

    def __init__(self, grain: str) -> None:
        """Take one of `FLOAT8_GRAINS`."""
        self.grain = grain

    @property
    def is_row_wise(self) -> bool:
        """Whether each output has a scale of its own."""
        return self.grain == "channel"

    def block(self, num_outputs: int, num_inputs: int) -> Block:
        """Return a row, the whole or a square."""
        sizes = {"channel": (1, num_inputs), "tensor": (num_outputs, num_inputs), "block": (BLOCK, BLOCK)}
        return sizes[self.grain]

    def quantize(self, weight: torch.Tensor, block: Block) -> PartWeight:
        """Round to e4m3."""
        return PartWeight(Float8Weight.quantize(weight, block), "float8")


class Int4Quantizer:
    """One scale and one zero point for each group of inputs."""

    is_row_wise = True

    def __init__(self, group: int) -> None:
        """Take the most inputs that a group may have."""
        self.group = group

    def block(self, _num_outputs: int, num_inputs: int) -> Block:
        """Return a group of a row; a single number where the weight stays plain."""
        return 1, group_for(num_inputs, self.group) or 1

    def quantize(self, weight: torch.Tensor, block: Block) -> PartWeight:
        """Round to 16 levels; a weight whose width no even group divides stays plain."""
        if block[1] == 1:
            return PartWeight(weight)
        return PartWeight(Int4Weight.quantize(weight, block[1]), "int4_weight_only")


def group_for(num_inputs: int, most: int) -> int | None:
    """Return the largest even group of at most `most` inputs that divides their number; None where it would be tiny."""
    sizes = range(min(most, num_inputs), min(SMALLEST_GROUP, most) - 1, -1)
    return next((size for size in sizes if size % 2 == 0 and num_inputs % size == 0), None)


def make_quantizer(scheme: LoadScheme) -> Quantizer:
    """Return what rounds weights for the scheme."""
    if scheme.name == "int4":
        return Int4Quantizer(scheme.group)
    if scheme.name == "fp8":
        return Float8Quantizer(scheme.grain)
    return Int8Quantizer("int8" if scheme.name == "int8_dynamic" else "int8_weight_only")
