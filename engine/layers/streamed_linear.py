"""Linear layers on a GPU whose few rows wait for nothing but the weight.

Knows modules. Does not know the kernel (`kernels.linear`) or families: passes over a built and loaded model. What is
quantized, stacked or otherwise no plain linear layer stays as it is.
"""

import torch
from torch import nn

from engine.layers.feed_forward import FeedForward
from kernels import linear as kernel


class StreamedLinear(nn.Module):
    """`x W^T + b` by the kernel for few rows, which leaves many to torch.

    Attributes:
        into: where the next answers go, [T, N] in any float type; None for new tensors.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the layer's parameters."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.multiply = kernel.select_streamed(linear.weight.device)
        self.into: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [T, K] to [T, N]."""
        return self.multiply(x, self.weight, self.bias, self.into)


class StreamedFeedForward(nn.Module):
    """A feed-forward block that activates where it multiplies."""

    def __init__(self, gate_up: StreamedLinear, down: nn.Module, activation: str) -> None:
        """Take over the two projections."""
        super().__init__()
        self.gate_up, self.down, self.activation = gate_up, down, activation
        self.multiply = kernel.select_gated(gate_up.weight.device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        return self.down(self.multiply(hidden, self.gate_up.weight, self.gate_up.bias, self.activation))


def stream_linears(model: nn.Module) -> None:
    """Replace every plain linear layer of a loaded model on a GPU."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, StreamedLinear(child))


def join_activations(model: nn.Module) -> None:
    """Let feed-forward blocks with streamed linears activate where they multiply.

    Not for models with adapters, whose updates read what lies between.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (joined := _joined(child)) is not None:
                setattr(parent, name, joined)


def _joined(module: nn.Module) -> StreamedFeedForward | None:
    if not isinstance(module, FeedForward) or type(module).activate is not FeedForward.activate:
        return None
    gate_up, down = module.get_submodule("gate_up"), module.get_submodule("down")
    return StreamedFeedForward(gate_up, down, module.activation) if isinstance(gate_up, StreamedLinear) else None
