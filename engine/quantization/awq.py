"""AWQ as autoawq's `gemm` layout stores it.

The weight lies transposed, inputs by outputs. A word holds eight neighbouring outputs; the output of offset ORDER[i]
stands in bits 4 i to 4 i + 3. Zero points are packed the same way.

| tensor | type | shape |
|---|---|---|
| `qweight` | int32 | [C, O / 8] |
| `qzeros` | int32 | [G, O / 8] |
| `scales` | fp16 | [G, O] |

Sources: AWQ (arXiv 2306.00978); the order of outputs, autoawq 0.2.9, `awq/modules/linear/gemm.py`.
"""

import torch

from engine.quantization.config import WeightFormat
from engine.quantization.groups import by_group, regular_groups
from engine.quantization.layout import FLOAT_TYPES, Cut, Expected, groups_of, inputs, outputs, unpack_words
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Int4Weight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WORD = len(ORDER)


class AwqLayout:
    """AWQ with one group size."""

    names = ("qweight", "scales", "qzeros")

    def __init__(self, form: WeightFormat) -> None:
        """Take the options of a checkpoint."""
        self.group, self.has_zeros = form.group, form.has_zeros

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C]; `layout.Layout` says more."""
        num_groups, size = groups_of(num_inputs, self.group)
        if num_outputs % WORD or size % 2:
            raise ValueError(f"{num_outputs} outputs in words of {WORD}, groups of {size}")
        words = num_outputs // WORD
        return {
            "qweight": Expected(("I32",), ((num_inputs, words),), (inputs(), outputs(WORD))),
            "qzeros": Expected(("I32",), ((num_groups, words),), (None, outputs(WORD)), is_optional=not self.has_zeros),
            "scales": Expected(FLOAT_TYPES, ((num_groups, num_outputs),), (None, outputs())),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight."""
        num_groups, size = groups_of(cut.shape[1], self.group)
        zeros = torch.full((len(cut.outputs), num_groups), 8, dtype=torch.uint8)
        if self.has_zeros:
            zeros = _unpack(tensors["qzeros"], cut.outputs)
        values, scales = _unpack(tensors["qweight"], cut.outputs), tensors["scales"].t().float()
        found = by_group(values, scales, zeros, regular_groups(cut.inputs, size), size)
        weight = Int4Weight.pack(found.values, found.scales, found.zeros, found.size)
        return PartWeight(weight, "int4_weight_only", found.order)


def _unpack(words: torch.Tensor, run: range) -> torch.Tensor:
    """Return the numbers of [n, words], which hold the outputs `run`, as [len(run), n] uint8."""
    numbers = unpack_words(words, 4).unflatten(1, (-1, WORD))
    first = run.start % WORD
    return numbers[:, :, list(map(ORDER.index, range(WORD)))].flatten(1)[:, first : first + len(run)].t().contiguous()
