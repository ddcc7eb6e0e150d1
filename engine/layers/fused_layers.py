"""Fewer, larger calls for the layers of a packed model on a CPU: norms join the products behind them.

Knows layers and feed-forward blocks. Does not know families: `fuse_layers` is a pass over a packed model. What a family
computes in its own way stays as it is. Not for models with adapters, whose updates read what lies between the parts.
"""

import torch
from torch import nn

from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.layers.norms import RMSNorm
from engine.layers.packed_linear import PackedLinear
from kernels import choice
from kernels.gated_activation import CPU_ACTIVATIONS
from kernels.linear import Norm


class FusedFeedForward(nn.Module):
    """A feed-forward block in one call, the norm before it included where there is one."""

    def __init__(self, gate_up: PackedLinear, down: PackedLinear, activation: str) -> None:
        """Take over the two projections."""
        super().__init__()
        self.gate_up, self.down, self.activation = gate_up.packed, down.packed, activation
        op = "int8_gated_mlp" if gate_up.is_int8 else "gated_mlp"
        self.compute = getattr(choice.cpu_kernel(op), f"{op}_cpu")
        self.norm: Norm | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        return self.compute(hidden, self.gate_up, self.down, self.activation, self.norm)

    __call__ = forward  # without hooks, as in `PackedLinear`


class JoinedNorm(nn.Module):
    """Where a norm was that is now computed with the product behind it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what is given."""
        return hidden

    def of_sum(self, residual: torch.Tensor, answer: torch.Tensor | None) -> torch.Tensor:
        """Add the answer [T, C], if there is one, to the residual [T, C], in place, and return that."""
        return residual if answer is None else residual.add_(answer)

    __call__ = forward


def fuse_layers(model: nn.Module) -> None:
    """Fuse what can be fused of a model whose linears are packed."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if (fused := _fused(child)) is not None:
                setattr(module, name, fused)
    for layer in model.modules():
        if isinstance(layer, DecoderLayer):
            _join(layer, "attention_norm", layer.attention.qkv)
            _join(layer, "feed_forward_norm", layer.feed_forward)


def _fused(module: nn.Module) -> FusedFeedForward | None:
    if not isinstance(module, FeedForward) or type(module).activate is not FeedForward.activate:
        return None
    gate_up, down = module.get_submodule("gate_up"), module.get_submodule("down")
    if not isinstance(gate_up, PackedLinear) or not isinstance(down, PackedLinear):
        return None
    if gate_up.is_int8 != down.is_int8:
        return None
    return FusedFeedForward(gate_up, down, module.activation) if module.activation in CPU_ACTIVATIONS else None


def _join(layer: DecoderLayer, name: str, behind: nn.Module) -> None:
    """Let `behind`, the only reader of that norm, compute it, if it can."""
    norm = layer.get_submodule(name)
    if isinstance(norm, RMSNorm) and isinstance(behind, PackedLinear | FusedFeedForward):
        behind.norm = Norm(norm.weight.detach(), norm.eps, norm.offset)
        setattr(layer, name, JoinedNorm())
