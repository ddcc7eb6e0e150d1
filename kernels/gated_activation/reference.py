"""Gated activations in plain torch: the truth that other implementations are tested against."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


def gated_activation_reference(activation: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Activate and multiply; see the contract in `kernels.gated_activation`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up
