"""GPTQ as AutoGPTQ and GPTQModel store it.

The weight lies transposed, inputs by outputs; a word holds neighbouring inputs of one output, the first in its lowest
bits. Zero points are packed along the outputs, and less one in the first version of the format. With act-order
(`desc_act`) `g_idx` names the group of each input, and groups are scattered; sorted by group the inputs are as always.

| tensor | type | shape |
|---|---|---|
| `qweight` | int32 | [C bits / 32, O] |
| `qzeros` | int32 | [G, O bits / 32] |
| `scales` | fp16 | [G, O] |
| `g_idx` | int32 | [C] |

Sources: GPTQ (arXiv 2210.17323); the two versions, GPTQModel's documentation of `checkpoint_format`.
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
)
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Int4Weight


class GptqLayout:
    """GPTQ of 4 or 8 bits with one group size."""

    names = ("qweight", "scales", "qzeros")

    def __init__(self, form: WeightFormat) -> None:
        """Take the options of a checkpoint."""
        self.bits, self.group, self.zero_offset = form.bits, form.group, form.zero_offset

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        num_groups, size = groups_of(num_inputs, self.group)
        per_word = WORD_BITS // self.bits
        if num_outputs % per_word or num_inputs % per_word or size % 2:
            raise ValueError(f"[{num_outputs}, {num_inputs}] in words of {per_word}, groups of {size}")
        return {
            "qweight": Expected(("I32",), ((num_inputs // per_word, num_outputs),), (inputs(per_word), outputs())),
            "qzeros": Expected(("I32",), ((num_groups, num_outputs // per_word),), (None, outputs(per_word))),
            "scales": Expected(FLOAT_TYPES, ((num_groups, num_outputs),), (None, outputs())),
            "g_idx": Expected(("I32", "I64"), ((num_inputs,),), (inputs(),), is_optional=True),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight, its columns sorted by group.

        Raises:
            ValueError: `g_idx` does not give each group its share of the inputs.
        """
        _, size = groups_of(cut.shape[1], self.group)
        values = unpack_run(tensors["qweight"].t().contiguous(), self.bits, cut.inputs)
        stored = unpack_run(tensors["qzeros"], self.bits, cut.outputs).t()
        zeros = (stored.int() + self.zero_offset) & ((1 << self.bits) - 1)  # what wrapped when it was stored wraps back
        groups = tensors.get("g_idx", regular_groups(cut.inputs, size))
        found = by_group(values, tensors["scales"].t().float(), zeros.to(torch.uint8), groups, size)
        if self.bits != 4:
            plain = dequantize_groups(found.values, found.scales, found.zeros, found.size)
            return PartWeight(plain, order=found.order)
        weight = Int4Weight.pack(found.values, found.scales, found.zeros, found.size)
        return PartWeight(weight, "int4_weight_only", found.order)
