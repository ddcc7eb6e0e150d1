"""An activation of one half of each row, times the other half.

    y[t, f] = activation(x[t, f]) * x[t, F + f]

with silu(v) = v / (1 + e^-v), gelu(v) = v * Phi(v), or its approximation
gelu_pytorch_tanh(v) = v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v^3))).

Source: GLU variants (arXiv 2002.05202).
"""

from functools import partial
from typing import Protocol

import torch

from kernels import choice
from kernels.gated_activation.reference import ACTIVATIONS, gated_activation_reference

__all__ = ["ACTIVATIONS", "CPU_ACTIVATIONS", "GatedActivation", "gated_activation_reference", "select"]
CPU_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


class GatedActivation(Protocol):
    """Signature of the operation, once its activation is chosen."""

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Map [T, 2 F], contiguous, to a new [T, F]."""
        ...


def select(device: torch.device, activation: str) -> GatedActivation:
    """Return the implementation for tensors on `device` and an activation that `ACTIVATIONS` names."""
    if device.type == "cuda":
        return partial(choice.triton_kernel("gated_activation").gated_activation_triton, activation)
    if device.type == "cpu" and activation in CPU_ACTIVATIONS:
        return partial(choice.cpu_kernel("gated_activation").gated_activation_cpu, activation)
    return partial(gated_activation_reference, activation)
