"""Mixtral: Mistral with experts in every layer. Source: Mixtral of Experts (arXiv 2401.04088)."""

from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts
from engine.models.decoder import Decoder


class MixtralExpert(FeedForward):
    """The shared feed-forward under Mixtral's names."""

    gate_up_names = ("w1", "w3")
    down_name = "w2"


class MixtralExperts(MixtureOfExperts):
    """The shared mixture of these experts."""

    expert_class = MixtralExpert


class MixtralLayer(DecoderLayer):
    """The shared layer with experts."""

    moe_class = MixtralExperts
    feed_forward_name = "block_sparse_moe"


class Mixtral(Decoder):
    """The shared decoder made of these layers."""

    layer_class = MixtralLayer
