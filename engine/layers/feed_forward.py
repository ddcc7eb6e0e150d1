"""The gated feed-forward layer.

Knows activations and two projections. Does not know norms around it.

Source: GLU variants (arXiv 2002.05202).
"""

import torch
from torch import nn

from engine.layers.checkpoint import Views, linear_views
from kernels import gated_activation


class FeedForward(nn.Module):
    """down(activation(gate x) * up x), gate and up in one fused projection.

    The names are those of the checkpoint's tensors.
    """

    gate_up_names: tuple[str, ...] = ("gate_proj", "up_proj")
    down_name = "down_proj"

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = False) -> None:
        """Allocate [2 F, C] and [C, F] projections."""
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        return self.down(self.activate(self.gate_up(hidden)))

    def activate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Map what `gate_up` gives, [T, 2 F], to [T, F]."""
        return gated_activation.select(gate_up.device, self.activation)(gate_up)

    def outputs_of(self, channels: range) -> list[range]:
        """Return which outputs of `gate_up` make these of the F channels."""
        width = self.gate_up.out_features // 2
        return [channels, range(width + channels.start, width + channels.stop)]

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the feed-forward layer, and our views."""
        width = self.gate_up.out_features // len(self.gate_up_names)
        gate_up = linear_views(self.gate_up, dict.fromkeys(self.gate_up_names, width))
        return gate_up | linear_views(self.down, {self.down_name: self.down.out_features})
