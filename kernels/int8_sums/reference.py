"""Sums of a part of the depth in plain torch: the truth that the CPU kernel is tested against."""

import torch

from kernels.quantized_linear import Int8Weight

LARGEST = 127.0


def int8_sums_reference(x: torch.Tensor, tops: torch.Tensor, weight: Int8Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Map [T, K] and [T] to sums [T, N] and row scales [T]; see `kernels.int8_sums`. fp64 holds the sums exactly."""
    scales = (tops / LARGEST).masked_fill(tops == 0, 1.0)
    rows = (x / scales.unsqueeze(1)).round()
    return (rows.double() @ weight.values.double().t()).float(), scales
