"""Rounding plain weights as they are loaded: one class a scheme.

Knows numbers. Does not know which layers are quantized or where weights come from.

Sources: W8A8 with scales found as rows come, ZeroQuant (arXiv 2206.01861); e4m3, FP8 formats (arXiv 2209.05433);
blocks, DeepSeek-V3 (arXiv 2412.19437); groups of 4-bit weights, GPTQ (arXiv 2210.17323), section 4.
"""

from collections.abc import Iterable
from typing import Protocol

import torch

from engine.quantization.config import LoadScheme
from engine.quantization.weights import PartWeight, stack_rows
from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight

BLOCK = 128
SMALLEST_GROUP = 8
ROUNDED_VALUES = 2**17  # that are rounded at once: half a megabyte in fp32, of which rounding takes a few


class Quantizer(Protocol):
    """Rounds the weights of one projection; each row alone where `is_row_wise`."""

    @property
    def is_row_wise(self) -> bool:
        """Whether some rows of a weight can be rounded before the others are there."""
        ...

    @property
    def has_row_scales(self) -> bool:
        """Whether a row has one scale: a run of its numbers is then rounded as in the whole row, once that was seen."""
        ...

    def quantize(self, weight: torch.Tensor) -> PartWeight:
        """Round a weight [O, C]; one that the scheme cannot hold stays plain."""
        ...


def round_pieces(
    quantizer: Quantizer, num_rows: int, pieces: Iterable[torch.Tensor], columns: range | None = None
) -> PartWeight:
    """Round a weight [O, C] that comes in pieces, [n, C], of which each is valid until the next one.

    Of rows that have one scale some `columns` may be kept.

    Beyond the result there are never more than a few times ROUNDED_VALUES numbers where the scheme is row-wise.
    """
    if not quantizer.is_row_wise:
        return quantizer.quantize(torch.cat([piece.to(torch.float32, copy=True) for piece in pieces]))
    runs = (rows for piece in pieces for rows in piece.split(max(1, ROUNDED_VALUES // piece.shape[1])))
    rounded = (quantizer.quantize(rows.float()) for rows in runs)
    return stack_rows(num_rows, rounded if columns is None else (part.columns(columns) for part in rounded))


class Int8Quantizer:
    """One scale for each output."""

    is_row_wise = has_row_scales = True

    def __init__(self, scheme: str) -> None:
        """Make weights for the kernels' `scheme`."""
        self.scheme = scheme

    def quantize(self, weight: torch.Tensor) -> PartWeight:
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

    has_row_scales = is_row_wise

    def quantize(self, weight: torch.Tensor) -> PartWeight:
        """Round to e4m3."""
        num_outputs, num_inputs = weight.shape
        blocks = {"channel": (1, num_inputs), "tensor": (num_outputs, num_inputs), "block": (BLOCK, BLOCK)}
        return PartWeight(Float8Weight.quantize(weight, blocks[self.grain]), "float8")


class Int4Quantizer:
    """One scale and one zero point for each group of inputs."""

    is_row_wise, has_row_scales = True, False

    def __init__(self, group: int) -> None:
        """Take the most inputs that a group may have."""
        self.group = group

    def quantize(self, weight: torch.Tensor) -> PartWeight:
        """Round to 16 levels; a weight whose width no even group divides stays plain."""
        group = group_for(weight.shape[1], self.group)
        if group is None:
            return PartWeight(weight)
        return PartWeight(Int4Weight.quantize(weight, group), "int4_weight_only")


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
