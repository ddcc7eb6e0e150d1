"""Phi-3 and Phi-4: Llama's layers whose checkpoints fuse projections as ours do. Source: Phi-3 (arXiv 2404.14219)."""

from engine.layers.attention import Attention
from engine.layers.checkpoint import Views, linear_views
from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.models.decoder import Decoder


class Phi3Attention(Attention):
    """The shared attention under Phi's names."""

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer's attention, and our views."""
        qkv = linear_views(self.qkv, {"qkv_proj": self.qkv.out_features})
        return qkv | linear_views(self.output, {"o_proj": self.output.out_features})


class Phi3FeedForward(FeedForward):
    """The shared feed-forward under Phi's names."""

    gate_up_names = ("gate_up_proj",)


class Phi3Layer(DecoderLayer):
    """The shared layer of these parts."""

    attention_class = Phi3Attention
    feed_forward_class = Phi3FeedForward


class Phi3(Decoder):
    """The shared decoder made of these layers."""

    layer_class = Phi3Layer
