"""Self-attention over the paged cache.

Knows projections, rotation and one layer's window. Does not know norms around it or other layers.

Sources: grouped-query attention (arXiv 2305.13245); norms on queries and keys (arXiv 2302.05442); sinks,
StreamingLLM (arXiv 2309.17453) in the form of gpt-oss (arXiv 2508.10925).
"""

import torch
from torch import nn

from engine.batch import Batch
from engine.kv_cache import LayerCache
from engine.layers.checkpoint import Views, linear_views
from engine.layers.norms import RMSNorm
from engine.models.config import ModelConfig
from kernels import paged_attention, rope_kv_store


class Attention(nn.Module):
    """Queries, keys and values come from one fused projection."""

    def __init__(self, config: ModelConfig, layer: int, device: torch.device) -> None:
        """Allocate [(H + 2 K) D, C] and [C, H D] projections for the layer of that index."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.output = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.output_bias)
        self.scale, self.window, self.soft_cap = (
            config.attention_scale,
            config.windows[layer],
            config.attention_soft_cap,
        )
        self.attend = paged_attention.select(device)
        self.rotate_and_store = rope_kv_store.select(device)

    def forward(self, hidden: torch.Tensor, batch: Batch, cos_sin: torch.Tensor, cache: LayerCache) -> torch.Tensor:
        """Map [T, C] to [T, C]; writes the tokens' keys and values into the layer's cache."""
        qkv = self.project(hidden)
        self.rotate_and_store(
            qkv,
            cos_sin,
            batch.rope_rows,
            batch.slot_mapping,
            cache.keys,
            cache.values,
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
        )
        out = self.attend(
            qkv.view(len(qkv), -1, self.head_dim)[:, : self.num_heads],
            cache.keys,
            cache.values,
            batch.block_tables,
            batch.token_to_seq,
            batch.positions,
            self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks=self.attention_sinks(),
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
        )
        return self.output(out.flatten(1))

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values of [T, C], side by side: [T, (H + 2 K) D]."""
        return self.qkv(hidden)

    def attention_sinks(self) -> torch.Tensor | None:
        """Return one more score for each head, [H], or None for no such thing."""
        return None

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer's attention, and our views."""
        return linear_views(self.qkv, self.qkv_parts()) | linear_views(
            self.output, {"o_proj": self.output.out_features}
        )

    def qkv_parts(self) -> dict[str, int]:
        """Return the checkpoint's names for the parts of `qkv`, with their widths."""
        queries, kvs = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {"q_proj": queries, "k_proj": kvs, "v_proj": kvs}


class NormedAttention(Attention):
    """Attention that normalizes each head's query and key before they are rotated."""

    norm_class: type[RMSNorm] = RMSNorm

    def __init__(self, config: ModelConfig, layer: int, device: torch.device) -> None:
        """Allocate the projections and two norms over D channels."""
        super().__init__(config, layer, device)
        self.query_norm = self.norm_class(self.head_dim, eps=config.rms_norm_eps)
        self.key_norm = self.norm_class(self.head_dim, eps=config.rms_norm_eps)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return normalized queries and keys, and values."""
        qkv = self.qkv(hidden)
        heads = qkv.view(len(qkv), -1, self.head_dim)
        queries, keys, _ = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        queries.copy_(self.query_norm(queries))
        keys.copy_(self.key_norm(keys))
        return qkv

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer's attention, and our views."""
        norms = {"q_norm.weight": self.query_norm.weight, "k_norm.weight": self.key_norm.weight}
        return super().weight_views() | norms


class SinkAttention(Attention):
    """Attention whose softmax has one more score for each head, learned, that no value answers to."""

    def __init__(self, config: ModelConfig, layer: int, device: torch.device) -> None:
        """Allocate the projections and [H] sinks."""
        super().__init__(config, layer, device)
        self.sinks = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))

    def attention_sinks(self) -> torch.Tensor:
        """Return the sinks."""
        return self.sinks

    def weight_views(self) -> Views:
        """Return the checkpoint's names, relative to the layer's attention, and our views."""
        return super().weight_views() | {"sinks": self.sinks}
