"""What quantized weights look like in memory, and how a weight [O, C] becomes one by rounding to nearest.

Knows layouts. Does not know products, checkpoints or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional as F

INT4_LEVELS = 15  # steps between the lowest and the highest of 16 values
LARGEST_INT8, LARGEST_FLOAT8 = 127.0, 448.0


@dataclass(slots=True, frozen=True)
class Int8Weight:
    """w[o, c] = values[o, c] * scales[o].

    Attributes:
        values: [O, C] int8, contiguous, within +-127.
        scales: [O] fp32.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def quantize(cls, weight: torch.Tensor) -> "Int8Weight":
        """Round a weight [O, C]; a row's largest value becomes +-127."""
        wide = weight.float()
        scales = _or_one(wide.abs().amax(dim=1) / LARGEST_INT8)
        return cls((wide / scales.unsqueeze(1)).round().to(torch.int8), scales)

    def dequantize(self) -> torch.Tensor:
        """Return w, [O, C] fp32."""
        return self.values.float() * self.scales.unsqueeze(1)


@dataclass(slots=True, frozen=True)
class Float8Weight:
    """w[o, c] = values[o, c] * scales[o // block[0], c // block[1]].

    A scale for each output is the block (1, C), one for the whole weight (O, C); blocks at the edges may be smaller.

    Attributes:
        values: [O, C] float8_e4m3fn, contiguous.
        scales: [ceil(O / block[0]), ceil(C / block[1])] fp32, contiguous.
        block: outputs and channels that share a scale.
    """

    values: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]

    @classmethod
    def quantize(cls, weight: torch.Tensor, block: tuple[int, int]) -> "Float8Weight":
        """Round a weight [O, C]; the largest value of a block becomes +-448."""
        wide = weight.float()
        num_outputs, num_channels = wide.shape
        padded = F.pad(wide, (0, -num_channels % block[1], 0, -num_outputs % block[0]))
        tiles = padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
        scales = _or_one(tiles.abs().amax(dim=(1, 3)) / LARGEST_FLOAT8)
        scaled = wide / _spread(scales, block, wide.shape)
        values = scaled.clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(torch.float8_e4m3fn)
        return cls(values, scales, block)

    def dequantize(self) -> torch.Tensor:
        """Return w, [O, C] fp32."""
        return self.values.float() * _spread(self.scales, self.block, self.values.shape)


@dataclass(slots=True, frozen=True)
class Int4Weight:
    """w[o, c] = (q[o, c] - zeros[o, c // group]) * scales[o, c // group], q within 0 to 15.

    A byte holds two channels: q[o, 2 i] in the low half of packed[o, i], q[o, 2 i + 1] in the high half.

    Attributes:
        packed: [O, C / 2] uint8, contiguous.
        scales: [O, C / group] fp32, fp16 or bf16, contiguous.
        zeros: [O, C / group] uint8, contiguous.
        group: channels that share a scale and a zero point; even, divides C.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group: int

    @classmethod
    def quantize(cls, weight: torch.Tensor, group: int) -> "Int4Weight":
        """Round a weight [O, C]; a group spans its lowest to its highest value, and 0 in any case."""
        groups = weight.float().unflatten(1, (-1, group))
        low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
        scales = _or_one((high - low) / INT4_LEVELS)
        zeros = (-low / scales).round()
        values = (groups / scales.unsqueeze(2)).round() + zeros.unsqueeze(2)
        return cls.pack(values.clamp(0, INT4_LEVELS).flatten(1).to(torch.uint8), scales, zeros.to(torch.uint8), group)

    @classmethod
    def pack(cls, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: int) -> "Int4Weight":
        """Pack values [O, C] uint8, each within 0 to 15."""
        return cls(values[:, ::2] | values[:, 1::2] << 4, scales, zeros, group)

    def unpack(self) -> torch.Tensor:
        """Return q, [O, C] uint8."""
        return torch.stack((self.packed & 15, self.packed >> 4), dim=2).flatten(1)

    def dequantize(self) -> torch.Tensor:
        """Return w, [O, C] fp32."""
        groups = self.unpack().float().unflatten(1, (-1, self.group))
        return ((groups - self.zeros.float().unsqueeze(2)) * self.scales.float().unsqueeze(2)).flatten(1)


Weight = Int8Weight | Float8Weight | Int4Weight


def stack(weights: Sequence[Weight]) -> Weight | None:
    """Return weights as one, each tensor with an axis in front; None where kinds, shapes, blocks or groups differ."""
    first = weights[0]
    if any(type(weight) is not type(first) or _sizes(weight) != _sizes(first) for weight in weights):
        return None
    names = [item.name for item in fields(first) if isinstance(getattr(first, item.name), torch.Tensor)]
    return replace(first, **{name: _stack_tensors([getattr(weight, name) for weight in weights]) for name in names})


def weight_of(stacked: Weight, index: int) -> Weight:
    """Return one of the weights of a stack, a view of it."""
    values = {item.name: getattr(stacked, item.name) for item in fields(stacked)}
    return replace(stacked, **{name: part[index] for name, part in values.items() if isinstance(part, torch.Tensor)})


def _sizes(weight: Weight) -> list[object]:
    """Return what must be the same in all weights of a stack."""
    values = [getattr(weight, item.name) for item in fields(weight)]
    return [(value.shape, value.dtype) if isinstance(value, torch.Tensor) else value for value in values]


def _stack_tensors(tensors: list[torch.Tensor]) -> torch.Tensor:
    bytes_of = [tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor for tensor in tensors]
    return torch.stack(bytes_of).view(tensors[0].dtype)


def _or_one(scales: torch.Tensor) -> torch.Tensor:
    return scales.masked_fill(scales == 0, 1.0)


def _spread(scales: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """Return the scale of each value of a weight of that shape."""
    rows = torch.arange(shape[0], device=scales.device) // block[0]
    columns = torch.arange(shape[1], device=scales.device) // block[1]
    return scales[rows.unsqueeze(1), columns]
