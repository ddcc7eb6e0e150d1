"""Qwen2-MoE: Qwen2 with experts, one of them shared by all tokens, in some or all layers. Source: arXiv 2407.10671."""

from engine.layers.decoder_layer import DecoderLayer
from engine.layers.moe import SharedMixtureOfExperts
from engine.models.decoder import Decoder


class Qwen2MoELayer(DecoderLayer):
    """The shared layer with a shared expert among the experts."""

    moe_class = SharedMixtureOfExperts


class Qwen2MoE(Decoder):
    """The shared decoder made of these layers."""

    layer_class = Qwen2MoELayer
