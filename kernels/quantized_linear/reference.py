"""Quantized linear layers in plain torch: the truth that other implementations are tested against."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from kernels.quantize_rows.reference import quantize_rows_reference
from kernels.quantized_linear.weights import Float8Weight, Int8Weight, Weight


def int8_linear_reference(inputs: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 8-bit integers; see the contract in `kernels.quantized_linear`. fp64 holds their sums exactly."""
    rows, row_scales = quantize_rows_reference(inputs, torch.int8, inputs.shape[1])
    sums = rows.double() @ weight.values.double().t()
    return _finish((sums * row_scales * weight.scales).float(), bias, inputs.dtype)


def float8_linear_reference(inputs: torch.Tensor, weight: Float8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 8-bit floats; see the contract in `kernels.quantized_linear`."""
    group = min(weight.block[1], inputs.shape[1])
    rows, row_scales = quantize_rows_reference(inputs, torch.float8_e4m3fn, group)
    wide = rows.float() * row_scales.repeat_interleave(group, dim=1)[:, : inputs.shape[1]]
    return _finish(wide @ weight.dequantize().t(), bias, inputs.dtype)


def weight_only_linear_reference(inputs: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by the dequantized weight; see the contract in `kernels.quantized_linear`."""
    return _finish(F.linear(inputs.float(), weight.dequantize()), bias, inputs.dtype)


int8_weight_only_linear_reference = int4_weight_only_linear_reference = weight_only_linear_reference


def _finish(sums: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return (sums if bias is None else sums + bias.float()).to(dtype)


REFERENCES: dict[str, Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]] = {
    "int8": int8_linear_reference,
    "int8_weight_only": weight_only_linear_reference,
    "float8": float8_linear_reference,
    "int4_weight_only": weight_only_linear_reference,
}
