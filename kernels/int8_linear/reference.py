"""A linear layer of 8-bit integers behind a norm in plain torch: the truth for other implementations."""

import torch

from kernels.linear import Norm
from kernels.quantized_linear import reference
from kernels.quantized_linear.weights import Int8Weight
from kernels.rms_norm.reference import rms_norm_reference


def int8_linear_reference(
    x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None = None, norm: Norm | None = None
) -> torch.Tensor:
    """Map [T, K] to [T, N]; see `kernels.int8_linear`."""
    return reference.int8_linear_reference(x if norm is None else rms_norm_reference(x, *norm), weight, bias)
