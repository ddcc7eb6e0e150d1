"""Rows in 8 bits, each group of a row's channels with a scale of its own, found as the row comes.

    scale[t, g] = max |x[t, c]| over group g / LARGEST,   1 where that is 0
    q[t, c] = x[t, c] / scale[t, c // group]

rounded half to even, to whole numbers within +-127 for int8 (LARGEST = 127) and to the nearest float8_e4m3fn within
+-448 (LARGEST = 448). A NaN or an infinity makes its group's scale one, so that no product of the row hides it.

Source: per-token dynamic quantization, ZeroQuant (arXiv 2206.01861); e4m3, FP8 formats (arXiv 2209.05433).
"""

from typing import Protocol

import torch

from kernels import choice
from kernels.quantize_rows.reference import LARGEST, quantize_rows_reference

__all__ = ["LARGEST", "QuantizeRows", "quantize_rows_reference", "select"]


class QuantizeRows(Protocol):
    """Signature of the operation."""

    def __call__(self, x: torch.Tensor, dtype: torch.dtype, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize.

        Args:
            x: [T, C], rows contiguous.
            dtype: `torch.int8` or `torch.float8_e4m3fn`.
            group: channels that share a scale; C for one scale a row. The last group may be shorter.

        Returns:
            q [T, C] and scales [T, ceil(C / group)] fp32, both contiguous.
        """
        ...


def select(device: torch.device) -> QuantizeRows:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("quantize_rows").quantize_rows_triton
    return quantize_rows_reference
