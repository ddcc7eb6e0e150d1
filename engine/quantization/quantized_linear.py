"""A linear layer with a quantized weight, in the form that suits the device.

Knows devices and the kernels' schemes. Does not know checkpoints or models.

On a CPU all schemes but W8A8 become plain layers whose weights are dequantized once: multiplying by 8- or 4-bit weights
as torch does it takes 10 to 200 times as long there (docs/decisions.md), and rounding inputs to 8-bit floats would cost
accuracy and win nothing.
"""

import torch
from torch import nn

from engine.quantization.weights import PartWeight
from kernels import quantized_linear

CPU_SCHEMES = ("int8",)


class QuantizedLinear(nn.Module):
    """`x W^T + b` with a quantized W."""

    def __init__(self, part: PartWeight, bias: torch.Tensor | None, device: torch.device) -> None:
        """Take a quantized weight [O, C] and a bias [O], both on the device."""
        super().__init__()
        assert not isinstance(part.weight, torch.Tensor)
        self.weight, self.bias, self.order, self.scheme = part.weight, bias, part.order, part.scheme
        self.multiply = quantized_linear.select(device, part.scheme)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, O]."""
        columns = inputs.contiguous() if self.order is None else inputs[:, self.order]
        return self.multiply(columns, self.weight, self.bias)


def make_linear(part: PartWeight, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a layer with this weight and bias; `dtype` is that of plain weights, but for those of 16 bits on a CPU."""
    part = part.to(device)
    if device.type == "cpu" and isinstance(part.weight, torch.Tensor) and part.order is None:
        return _plain_linear(part.weight, bias)
    if part.is_plain or (device.type == "cpu" and part.scheme not in CPU_SCHEMES):
        return _plain_linear(part.dequantize().to(dtype), bias)
    return QuantizedLinear(part, bias, device)


def _plain_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # pyright: ignore[reportAttributeAccessIssue]
    return linear
