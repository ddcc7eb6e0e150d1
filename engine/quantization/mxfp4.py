"""MXFP4: floats of 4 bits, 32 of which share a power of two, as gpt-oss stores its experts.

Knows bits. Does not know files, models or how many experts there are. Source: OCP Microscaling Formats (MX) 1.0,
sections 5.3.3 (E2M1) and 5.4.1 (E8M0); arXiv 2310.10537.
"""

import torch

from engine.quantization.layout import Cut, Expected, groups_of, inputs, outputs
from engine.quantization.weights import PartWeight

GROUP = 32
GROUP_BYTES = GROUP // 2
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NUMBERS = torch.tensor([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)])
PAIRS = torch.stack((NUMBERS.repeat(16), NUMBERS.repeat_interleave(16)), dim=1)  # of each byte, low bits first
EXPONENT_BIAS = 127
NAN_EXPONENT = 255


class Mxfp4Layout:
    """Bytes of two channels, and a biased exponent for each group of channels."""

    names = ("blocks", "scales")

    def tensors(self, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
        """Return what stands for a weight [O, C].

        Raises:
            ValueError: C is no multiple of 32.
        """
        num_groups, _ = groups_of(num_inputs, GROUP)
        return {
            "blocks": Expected(("U8",), ((num_outputs, num_groups, GROUP_BYTES),), (outputs(), inputs(GROUP), None)),
            "scales": Expected(("U8",), ((num_outputs, num_groups),), (outputs(), inputs(GROUP))),
        }

    def read(self, tensors: dict[str, torch.Tensor], cut: Cut) -> PartWeight:
        """Return the weight, plain and exact.

        Raises:
            ValueError: a scale is NaN.
        """
        exponents = tensors["scales"]
        if (exponents == NAN_EXPONENT).any():
            raise ValueError("one of its scales is NaN")
        numbers = PAIRS.index_select(0, tensors["blocks"].flatten().int()).view(*exponents.shape, GROUP)
        scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - EXPONENT_BIAS)
        first = cut.inputs.start % GROUP
        weight = numbers.mul_(scales.unsqueeze(-1)).bfloat16()  # exact: two bits and a sign, and fp32's exponents
        return PartWeight(weight.flatten(1)[:, first : first + len(cut.inputs)])
