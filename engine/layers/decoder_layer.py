"""One layer of a decoder: attention and feed-forward, each behind a norm and around a residual.

Knows the order of operations. Does not know what attention and feed-forward are made of, or the other layers. What a
part answers is added to the residual by the norm in front of the next part, which may be the next layer's: one pass
over both.
"""

import torch
from torch import nn

from engine.batch import Batch
from engine.kv_cache import LayerCache
from engine.layers.attention import Attention
from engine.layers.checkpoint import Views, prefixed
from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts
from engine.layers.norms import RMSNorm
from engine.models.config import ModelConfig


class DecoderLayer(nn.Module):
    """The layer of Llama; families replace its parts by overriding them."""

    attention_class: type[Attention] = Attention
    feed_forward_class: type[FeedForward] = FeedForward
    moe_class: type[MixtureOfExperts] = MixtureOfExperts
    feed_forward_name = "mlp"
    norm_class: type[RMSNorm] = RMSNorm

    def __init__(self, config: ModelConfig, layer: int, device: torch.device) -> None:
        """Allocate the layer of that index."""
        super().__init__()
        self.attention = self.attention_class(config, layer, device)
        self.feed_forward = self.make_feed_forward(config, layer, device)
        self.attention_norm = self.norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward_norm = self.norm_class(config.hidden_size, eps=config.rms_norm_eps)

    def make_feed_forward(
        self, config: ModelConfig, layer: int, device: torch.device
    ) -> FeedForward | MixtureOfExperts:
        """Return the feed-forward of the layer of that index: dense, or experts where the configuration has them."""
        moe = config.moe
        if moe is not None and layer in moe.sparse_layers:
            return self.moe_class(config.hidden_size, config.activation, moe, device)
        return self.feed_forward_class(
            config.hidden_size, config.intermediate_size, config.activation, bias=config.mlp_bias
        )

    def forward(
        self,
        residual: torch.Tensor,
        answer: torch.Tensor | None,
        batch: Batch,
        cos_sin: torch.Tensor,
        cache: LayerCache,
    ) -> torch.Tensor:
        """Compute the layer.

        Args:
            residual: [T, C]; changed.
            answer: of the layer before, [T, C], which the residual still lacks; None for the first layer.
            batch: the step's tokens.
            cos_sin: table of the layer's rope.
            cache: keys and values of the layer.

        Returns:
            What the residual, as it is then, still lacks, [T, C].
        """
        answer = self.attention(self.attention_norm.of_sum(residual, answer), batch, cos_sin, cache)
        return self.feed_forward(self.feed_forward_norm.of_sum(residual, answer))

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer, and our views."""
        norms: Views = {
            "input_layernorm.weight": self.attention_norm.weight,
            "post_attention_layernorm.weight": self.feed_forward_norm.weight,
        }
        attention, feed_forward = self.attention.weight_views(), self.feed_forward.weight_views()
        return norms | prefixed("self_attn", attention) | prefixed(self.feed_forward_name, feed_forward)


class SandwichLayer(DecoderLayer):
    """The layer of Gemma 2 (arXiv 2408.00118): the answers of both parts are normalized as well."""

    def __init__(self, config: ModelConfig, layer: int, device: torch.device) -> None:
        """Allocate the layer of that index."""
        super().__init__(config, layer, device)
        self.attention_answer_norm = self.norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward_answer_norm = self.norm_class(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        residual: torch.Tensor,
        answer: torch.Tensor | None,
        batch: Batch,
        cos_sin: torch.Tensor,
        cache: LayerCache,
    ) -> torch.Tensor:
        """Compute the layer; arguments and result as in `DecoderLayer`."""
        answer = self.attention(self.attention_norm.of_sum(residual, answer), batch, cos_sin, cache)
        answer = self.feed_forward(self.feed_forward_norm.of_sum(residual, self.attention_answer_norm(answer)))
        return self.feed_forward_answer_norm(answer)

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer, and our views."""
        return super().weight_views() | {
            "post_attention_layernorm.weight": self.attention_answer_norm.weight,
            "pre_feedforward_layernorm.weight": self.feed_forward_norm.weight,
            "post_feedforward_layernorm.weight": self.feed_forward_answer_norm.weight,
        }
