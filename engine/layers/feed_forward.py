"""The gated feed-forward layer.

Knows activations and two projections. Does not know norms around it.

Source: GLU variants (arXiv 2002.05202).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from engine.layers.checkpoint import Views, linear_views

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """down(activation(gate x) * up x), gate and up in one fused projection."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = False) -> None:
        """Allocate [2 F, C] and [C, F] projections."""
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(self.activation(gate).mul_(up))

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the feed-forward layer, and our views."""
        down = {"down_proj": self.down.out_features}
        return linear_views(self.gate_up, self.gate_up_parts()) | linear_views(self.down, down)

    def gate_up_parts(self) -> dict[str, int]:
        """Return the checkpoint's names for the parts of `gate_up`, with their widths."""
        return {"gate_proj": self.down.in_features, "up_proj": self.down.in_features}
