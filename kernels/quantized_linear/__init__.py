"""A linear layer whose weight is quantized, and whose inputs are, where the scheme says so.

    out[t, o] = sum_c x[t, c] * w[o, c] + bias[o]

| scheme | weight | inputs |
|---|---|---|
| `int8` (W8A8) | `Int8Weight` | int8, a scale for each row, found as it comes |
| `int8_weight_only` (W8A16) | `Int8Weight` | as they are |
| `float8` (W8A8) | `Float8Weight`, a scale for each block | e4m3, a scale for each row and block of channels |
| `int4_weight_only` (W4A16) | `Int4Weight`, a scale and a zero point for each group of channels | as they are |

Contract, kept by every implementation: int8 products are summed exactly, all others in fp32 or wider; scales are
applied to sums in fp32, or to weights that are rounded to the inputs' type where rows are many; a NaN or an infinity
in a row of the inputs comes out of that row and of no other.

Sources: W8A8, SmoothQuant (arXiv 2211.10438) without its migration; blocks of 128 x 128, DeepSeek-V3 (arXiv
2412.19437), section 3.3; groups of 4-bit weights, AWQ (arXiv 2306.00978) and GPTQ (arXiv 2210.17323).
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.quantized_linear.reference import REFERENCES
from kernels.quantized_linear.weights import Float8Weight, Int4Weight, Int8Weight, Weight

__all__ = ["SCHEMES", "Float8Weight", "Int4Weight", "Int8Weight", "QuantizedLinear", "Weight", "select"]

SCHEMES = tuple(REFERENCES)


class QuantizedLinear(Protocol):
    """Signature of the operation, once its scheme is chosen."""

    def __call__(self, inputs: torch.Tensor, weight: Weight, bias: torch.Tensor | None, /) -> torch.Tensor:
        """Multiply.

        Args:
            inputs: [T, C] fp32, fp16 or bf16, contiguous.
            weight: of the scheme's kind.
            bias: [O], or None.

        Returns:
            [T, O] of the inputs' dtype, contiguous.
        """
        ...


def select(device: torch.device, scheme: str) -> QuantizedLinear:
    """Return the implementation for tensors on `device` and one of `SCHEMES`."""
    if device.type == "cuda":
        return choice.triton_kernel("quantized_linear").TRITON_LINEARS[scheme]
    return REFERENCES[scheme]
