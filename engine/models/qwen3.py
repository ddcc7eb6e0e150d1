"""Qwen3: norms on queries and keys instead of biases. Source: Qwen3 (arXiv 2505.09388)."""

from engine.layers.attention import NormedAttention
from engine.layers.decoder_layer import DecoderLayer
from engine.models.decoder import Decoder


class Qwen3Layer(DecoderLayer):
    """The shared layer with normalized queries and keys."""

    attention_class = NormedAttention


class Qwen3(Decoder):
    """The shared decoder made of these layers."""

    layer_class = Qwen3Layer
