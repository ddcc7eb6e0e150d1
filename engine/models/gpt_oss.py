"""gpt-oss: attention sinks, windows in every other layer, experts with biases and a clamped gate.

Knows the layout of its checkpoints, which stack experts and interleave gate and up. Source: arXiv 2508.10925.
"""

import torch
from torch import nn

from engine.layers.attention import SinkAttention
from engine.layers.checkpoint import Views, linear_views
from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts
from engine.models.decoder import Decoder

SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


class GptOssExpert(FeedForward):
    """down((up + 1) * gate sigmoid(alpha gate)), both clamped; gate and up interleaved in `gate_up`'s outputs."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        """Allocate [2 F, C] and [C, F] projections with biases."""
        super().__init__(hidden_size, intermediate_size, activation, bias=True)

    def activate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Map what `gate_up` gives, [n, 2 F], to [n, F]."""
        gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(dim=-1)
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)

    def outputs_of(self, channels: range) -> list[range]:
        """Return which outputs of `gate_up` make these of the F channels."""
        return [range(2 * channels.start, 2 * channels.stop)]


class GptOssExperts(MixtureOfExperts):
    """The shared mixture of these experts; the router has a bias."""

    expert_class = GptOssExpert
    router_name = "router"
    router_bias = True

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the feed-forward layer, and our views."""
        views = linear_views(self.router, {self.router_name: self.moe.num_experts})
        for name, linears in (
            ("gate_up_proj", [expert.get_submodule("gate_up") for expert in self.experts]),
            ("down_proj", [expert.get_submodule("down") for expert in self.experts]),
        ):
            weights = [linear.weight.t() for linear in linears if isinstance(linear, nn.Linear)]
            if weights:  # there are none while quantized ones are being loaded
                views[f"experts.{name}"] = weights
            views[f"experts.{name}_bias"] = [linear.get_parameter("bias") for linear in linears]
        return views


class GptOssLayer(DecoderLayer):
    """The shared layer with sinks and these experts."""

    attention_class = SinkAttention
    moe_class = GptOssExperts


class GptOss(Decoder):
    """The shared decoder made of these layers."""

    layer_class = GptOssLayer
