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
from engine.quantization.layout import FLOAT_TYPES, Expected, Shape
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Float8Weight


class Float8Layout:
    """e4m3 with scales under one of two names."""

    def __init__(self, form: WeightFormat, scale_name: str) -> None:
        """Take the options of a checkpoint and what it calls its scales."""
        self.block, self.names = form.block, (scale_name,)

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        return {
            "weight": Expected(("F8_E4M3",), ((num_outputs, num_inputs),)),
            self.names[0]: Expected(FLOAT_TYPES, self._shapes(num_outputs, num_inputs)),
        }

    def read(self, tensors: dict[str, torch.Tensor], num_outputs: int, num_inputs: int) -> PartWeight:
        """Return the weight."""
        scales, block = tensors[self.names[0]].float(), self.block
        if block is None:
            is_single = scales.numel() == 1
            block = (num_outputs if is_single else 1, num_inputs)
            scales = scales.view(-1, 1)
        weight = Float8Weight(tensors["weight"].view(num_outputs, num_inputs), scales.contiguous(), block)
        return PartWeight(weight, "float8")

    def _shapes(self, num_outputs: int, num_inputs: int) -> tuple[Shape, ...]:
        if self.block is None:
            return (num_outputs, 1), (num_outputs,), (1,), (1, 1), ()
        return ((-(-num_outputs // self.block[0]), -(-num_inputs // self.block[1])),)
