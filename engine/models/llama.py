"""The Llama family: Llama 2 and 3 and everything that kept their shape.

Knows the order of operations and the names of the checkpoint's tensors. Does not know files, scheduling or sampling.

Sources: Llama (arXiv 2302.13971), Llama 2 (arXiv 2307.09288) for grouped-query attention.
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.layers.rope import cos_sin_table
from engine.models.config import ModelConfig
from kernels import paged_attention, rope_kv_store


class Attention(nn.Module):
    """Self-attention over the paged cache; queries, keys and values come from one fused projection."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Allocate [(H + 2 K) D, C] and [C, H D] projections."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.output = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.attention_bias)
        self.attend = paged_attention.select(device)
        self.rotate_and_store = rope_kv_store.select(device)

    def forward(
        self, hidden: torch.Tensor, batch: Batch, cos_sin: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Map [T, C] to [T, C]; writes the tokens' keys and values into the layer's cache [N, K, B, D]."""
        qkv = self.qkv(hidden)
        self.rotate_and_store(qkv, cos_sin, batch.positions, batch.slot_mapping, keys, values)
        query = qkv.view(len(qkv), -1, self.head_dim)[:, : self.num_heads]
        scale = self.head_dim**-0.5
        out = self.attend(query, keys, values, batch.block_tables, batch.token_to_seq, batch.positions, scale)
        return self.output(out.flatten(1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x), gate and up in one fused projection."""

    def __init__(self, config: ModelConfig) -> None:
        """Allocate [2 F, C] and [C, F] projections."""
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [T, C] to [T, C]."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Allocate one layer."""
        super().__init__()
        self.attention = Attention(config, device)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, batch: Batch, cos_sin: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Map [T, C] to [T, C], in place."""
        hidden += self.attention(self.attention_norm(hidden), batch, cos_sin, keys, values)
        hidden += self.feed_forward(self.feed_forward_norm(hidden))
        return hidden


class Llama(nn.Module):
    """The decoder, from token ids to logits."""

    cos_sin: torch.Tensor

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Lay out all parameters for computing on `device`; meant to run under the meta device."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, device) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def materialize(self, device: torch.device, num_positions: int) -> "Llama":
        """Give every parameter memory with undefined values; `num_positions` bounds the positions of tokens."""
        self.to_empty(device=device)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.cos_sin = cos_sin_table(self.config.rope, self.config.head_dim, num_positions).to(device)
        return self

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute the batch and return the logits of `batch.logits_indices`, [R, V]."""
        hidden = self.embedding(batch.input_ids)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, batch, self.cos_sin, cache.keys[index], cache.values[index])
        return self.lm_head(self.norm(hidden[batch.logits_indices]))

    def weight_views(self) -> dict[str, torch.Tensor]:
        """Return where each tensor of a Hugging Face checkpoint goes: its name and a view of our parameter."""
        views = {"model.embed_tokens.weight": self.embedding.weight, "model.norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            views["lm_head.weight"] = self.lm_head.weight
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            views |= {f"model.layers.{index}.{name}": view for name, view in _layer_views(layer, self.config)}
        return {name: view.detach() for name, view in views.items()}


def _layer_views(layer: DecoderLayer, config: ModelConfig) -> list[tuple[str, torch.Tensor]]:
    queries, kvs = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    views: list[tuple[str, torch.Tensor]] = [
        ("input_layernorm.weight", layer.attention_norm.weight),
        ("post_attention_layernorm.weight", layer.feed_forward_norm.weight),
    ]
    for prefix, linear, parts in (
        ("self_attn.{}_proj", layer.attention.qkv, {"q": queries, "k": kvs, "v": kvs}),
        ("self_attn.{}_proj", layer.attention.output, {"o": config.hidden_size}),
        ("mlp.{}_proj", layer.feed_forward.gate_up, {"gate": config.intermediate_size, "up": config.intermediate_size}),
        ("mlp.{}_proj", layer.feed_forward.down, {"down": config.hidden_size}),
    ):
        for kind, parameter in linear.named_parameters():
            rows = parameter.split(list(parts.values()))
            views += [(f"{prefix.format(part)}.{kind}", row) for part, row in zip(parts, rows, strict=True)]
    return views
