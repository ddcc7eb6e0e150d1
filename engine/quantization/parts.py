"""Some outputs and inputs of a weight that was rounded with its neighbours, in the form that kernels take.

Knows which scales go with them. Does not know files, or why it is these.

A cut may go through the numbers that share a scale. Of e4m3's blocks rows then have scales of their own, and columns
that are zero stand for the inputs of a block that are not there; groups of 4-bit integers are filled up likewise.
"""

from dataclasses import replace

import torch

from engine.quantization.groups import by_group, regular_groups
from engine.quantization.weights import PartWeight
from kernels.quantized_linear import Float8Weight, Int4Weight, Int8Weight


def part_of(whole: PartWeight, outputs: range, inputs: range) -> PartWeight:
    """Return these outputs and inputs of a weight [O, C] whose columns are in the order of its inputs."""
    assert whole.order is None
    weight = whole.weight
    if (len(outputs), len(inputs)) == _shape_of(weight):
        return whole
    rows, columns = slice(outputs.start, outputs.stop), slice(inputs.start, inputs.stop)
    if isinstance(weight, torch.Tensor):
        return PartWeight(weight[rows, columns].contiguous())
    if isinstance(weight, Int8Weight):
        return replace(whole, weight=Int8Weight(weight.values[rows, columns].contiguous(), weight.scales[rows]))
    if isinstance(weight, Float8Weight):
        height, width = weight.block
        scales = weight.scales[outputs.start // height : -(-outputs.stop // height)]
        scales = scales[:, inputs.start // width : -(-inputs.stop // width)]
        before = outputs.start % height, inputs.start % width
        return float8_of_blocks(weight.values[rows, columns].contiguous(), scales, weight.block, before)
    groups = regular_groups(inputs, weight.group)
    found = by_group(weight.unpack()[rows, columns], weight.scales[rows], weight.zeros[rows], groups, weight.group)
    packed = Int4Weight.pack(found.values.contiguous(), found.scales, found.zeros, found.size)
    return PartWeight(packed, whole.scheme, found.order)


def float8_of_blocks(
    values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], before: tuple[int, int]
) -> PartWeight:
    """Return the weight of some outputs and inputs of one with a scale for each block.

    Args:
        values: [O, C] e4m3, contiguous; those outputs and inputs.
        scales: of all blocks that they lie in.
        block: outputs and inputs of a block.
        before: outputs and inputs of the first block that are not there.
    """
    (height, width), (above, left), order = block, before, None
    if above:
        scales, height = scales.repeat_interleave(height, dim=0)[above : above + len(values)], 1
    if scales.shape[1] == 1:
        left, width = 0, values.shape[1]
    if left:
        columns = torch.arange(values.shape[1])
        values = torch.nn.functional.pad(values.view(torch.uint8), (left, 0)).view(torch.float8_e4m3fn)
        order = torch.cat([columns.new_zeros(left), columns])
    return PartWeight(Float8Weight(values, scales.contiguous(), (height, width)), "float8", order)


def _shape_of(weight: torch.Tensor | Int8Weight | Float8Weight | Int4Weight) -> tuple[int, int]:
    if isinstance(weight, torch.Tensor):
        return weight.shape[0], weight.shape[1]
    if isinstance(weight, Int4Weight):
        return len(weight.packed), 2 * weight.packed.shape[1]
    return weight.values.shape[0], weight.values.shape[1]
