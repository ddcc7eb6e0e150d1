"""The formats of compressed-tensors (llm-compressor, and what vLLM reads).

`pack-quantized`: integers plus half their range, packed along the inputs, the first in a word's lowest bits; the last
word of a row is padded.

| tensor | type | shape |
|---|---|---|
| `weight_packed` | int32 | [O, ceil(C bits / 32)] |
| `weight_scale` | float | [O, G] |
| `weight_zero_point` | int32, packed along the outputs | [ceil(O bits / 32), G], where there are zero points |
| `weight_g_idx` | int32 | [C], the group of each input, with `actorder` |
| `weight_shape` | int64 | [2], O and C |

`int-quantized`: `weight` int8 [O, C], `weight_scale` [O, 1] or one for all.
Source: compressed-tensors 0.20, `compressors/`.
"""

import torch

from engine.quantization.config import WeightFormat
from engine.quantization.groups import by_group, regular_groups
from engine.quantization.layout import (
    FLOAT_TYPES,
    WORD_BITS,
    Cut,
    Expected,
    dequantize_groups,
    groups_of,
    inputs,
    outputs,
    unpack_run,
    words_for,
)
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Int4Weight, Int8Weight


class PackedLayout:
    """`pack-quantized` of 4 or 8 bits."""

    names = ("weight_packed", "weight_scale")

    def __init__(self, form: WeightFormat) -> None:
        """Take the options of a checkpoint."""
        self.bits, self.group, self.has_zeros = form.bits, form.group, form.has_zeros

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        num_groups, _ = groups_of(num_inputs, self.group)
        per_word = WORD_BITS // self.bits
        packed, zeros = (num_outputs, words_for(num_inputs, self.bits)), (words_for(num_outputs, self.bits), num_groups)
        return {
            "weight_packed": Expected(("I32",), (packed,), (outputs(), inputs(per_word))),
            "weight_scale": Expected(FLOAT_TYPES, ((num_outputs, num_groups),), (outputs(), None)),
            "weight_zero_point": Expected(
                ("I32",), (zeros,), (outputs(per_word), None), is_optional=not self.has_zeros
            ),
            "weight_g_idx": Expected(("I32", "I64"), ((num_inputs,),), (inputs(),), is_optional=True),
            "weight_shape": Expected(("I64", "I32"), ((2,),), is_optional=True),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight, its columns sorted by group.

        Raises:
            ValueError: the shape stored beside it is another one, or `g_idx` contradicts the groups.
        """
        shape = tensors.get("weight_shape")
        if shape is not None and shape.tolist() != list(cut.shape):
            raise ValueError(f"weight_shape says {shape.tolist()}, expected {list(cut.shape)}")
        num_groups, size = groups_of(cut.shape[1], self.group)
        values, scales = unpack_run(tensors["weight_packed"], self.bits, cut.inputs), tensors["weight_scale"].float()
        if self.bits == 8 and num_groups == 1 and not self.has_zeros:
            signed = (values.to(torch.int16) - 128).to(torch.int8)
            return PartWeight(Int8Weight(signed, scales.squeeze(1).contiguous()), "int8_weight_only")
        groups = tensors.get("weight_g_idx", regular_groups(cut.inputs, size))
        found = by_group(values, scales, self._zeros(tensors, cut, num_groups), groups, size)
        if self.bits != 4 or size % 2:
            plain = dequantize_groups(found.values, found.scales, found.zeros, found.size)
            return PartWeight(plain, order=found.order)
        weight = Int4Weight.pack(found.values, found.scales, found.zeros, found.size)
        return PartWeight(weight, "int4_weight_only", found.order)

    def _zeros(self, tensors: dict[str, torch.Tensor], cut: Cut, num_groups: int) -> torch.Tensor:
        if not self.has_zeros:
            return torch.full((len(cut.outputs), num_groups), 1 << (self.bits - 1), dtype=torch.uint8)
        return unpack_run(tensors["weight_zero_point"].t().contiguous(), self.bits, cut.outputs).t().contiguous()


class IntLayout:
    """`int-quantized` of 8 bits: a scale for each output, or one for all."""

    names = ("weight_scale",)

    def __init__(self, form: WeightFormat) -> None:
        """Take the options of a checkpoint."""
        self.scheme = "int8" if form.quantizes_inputs else "int8_weight_only"

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        return {
            "weight": Expected(("I8",), ((num_outputs, num_inputs),), (outputs(), inputs())),
            "weight_scale": Expected(FLOAT_TYPES, ((num_outputs, 1), (num_outputs,), (1,), ()), (outputs(),)),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight."""
        scales = tensors["weight_scale"].float().flatten().expand(len(cut.outputs)).contiguous()
        return PartWeight(Int8Weight(tensors["weight"], scales), self.scheme)
