"""Weights in e4m3 as they are published: compressed-tensors' `float-quantized`, and `fp8` and `fbgemm_fp8` of others.

| tensor | type | shape |
|---|---|---|
| `weight` | e4m3 | [O, C] |
| `weight_scale`, or `weight_scale_inv` | float | one for all, [O, 1], [O], or [ceil(O / 128), ceil(C / 128)] |

A scale is a factor under both names. Scales of inputs found beforehand (`input_scale`) are not read: ours are found
for each row as it comes.

Sources: DeepSeek-V3 (arXiv 2412.19437), section 3.3; transformers, `finegrained_fp8`; compressed-tensors 0.20.
"""

import torch

from engine.quantization.config import WeightFormat
from engine.quantization.layout import FLOAT_TYPES, Cut, Expected, Shape, inputs, outputs
from engine.quantization.parts import float8_of_blocks
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Float8Weight


class Float8Layout:
    """e4m3 with scales under one of two names."""

    def __init__(self, form: WeightFormat, scale_name: str) -> None:
        """Take the options of a checkpoint and what it calls its scales."""
        self.block, self.names = form.block, (scale_name,)

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        block = (1, 1) if self.block is None else self.block
        axes = outputs(block[0]), None if self.block is None else inputs(block[1])
        return {
            "weight": Expected(("F8_E4M3",), ((num_outputs, num_inputs),), (outputs(), inputs())),
            self.names[0]: Expected(FLOAT_TYPES, self._shapes(num_outputs, num_inputs), axes),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight."""
        values, scales = tensors["weight"], tensors[self.names[0]].float()
        if self.block is not None:
            before = cut.outputs.start % self.block[0], cut.inputs.start % self.block[1]
            return float8_of_blocks(values, scales, self.block, before)
        block = (len(values) if scales.numel() == 1 else 1, values.shape[1])
        return PartWeight(Float8Weight(values, scales.view(-1, 1).contiguous(), block), "float8")

    def _shapes(self, num_outputs: int, num_inputs: int) -> tuple[Shape, ...]:
        if self.block is None:
            return (num_outputs, 1), (num_outputs,), (1,), (1, 1), ()
        return ((-(-num_outputs // self.block[0]), -(-num_inputs // self.block[1])),)
