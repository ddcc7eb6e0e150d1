"""A decoder-only language model, from token ids to logits: what all families share.

Knows the order of layers and the checkpoint's outer names. Does not know files, scheduling or sampling.
"""

from typing import Self

import torch
from torch import nn

from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.layers.attention import Attention
from engine.layers.checkpoint import Views, linear_views, prefixed
from engine.layers.decoder_layer import DecoderLayer
from engine.layers.norms import RMSNorm
from engine.layers.rope import cos_sin_table
from engine.models.config import ModelConfig
from engine.models.rope_config import RopeTables

HEAD = "lm_head"


class Decoder(nn.Module):
    """Embedding, layers, norm and head; a family names its kind of layer and overrides where it differs."""

    layer_class: type[DecoderLayer] = DecoderLayer
    norm_class: type[RMSNorm] = RMSNorm
    rope_tables: RopeTables
    cos_sin: list[torch.Tensor]

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Lay out all parameters for computing on `device`; meant to run under the meta device."""
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding.from_pretrained(table)  # random weights on the meta device import sympy: 70 MB
        self.layers = nn.ModuleList(self.layer_class(config, index, device) for index in range(config.num_layers))
        self.norm = self.norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def materialize(self, device: torch.device, num_positions: int) -> Self:
        """Give every parameter memory with undefined values; `num_positions` bounds the positions of tokens."""
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):  # `to_empty` would import sympy: 40 MB
                memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module.register_parameter(name, nn.Parameter(memory, requires_grad=False))
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.rope_tables = RopeTables(self.config.rope.lengths(num_positions), num_positions)
        self.cos_sin = self._angles(device)
        return self

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute the batch, fill `batch.pooled`, and return the logits of `batch.logits_indices`, [R, V]."""
        hidden, answer = self.embed(batch.input_ids), None
        for index, layer in enumerate(self.layers):
            answer = layer(hidden, answer, batch, self.cos_sin[index], cache.layers[index])
        if answer is not None:
            hidden += answer
        if len(batch.pooled_indices):
            batch.pooled = self.norm(hidden[batch.pooled_indices])
        return self.logits(self.norm(hidden[batch.logits_indices]))

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of this model's cache: those of the configuration, or this rank's."""
        attention = self.layers[0].get_submodule("attention")
        assert isinstance(attention, Attention)
        return attention.num_kv_heads

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [T] to [T, C]."""
        return self.embedding(token_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [R, C] to [R, V] fp32."""
        logits, cap = self.lm_head(hidden).float(), self.config.logits_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def weight_views(self) -> Views:
        """Return where each tensor of a Hugging Face checkpoint goes: its name and a view of our parameter."""
        views: Views = {"model.embed_tokens.weight": self.embedding.weight, "model.norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            views |= linear_views(self.lm_head, {HEAD: self.config.vocab_size})
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            views |= prefixed(f"model.layers.{index}", layer.weight_views())
        return views

    def is_redundant(self, name: str) -> bool:
        """Whether a tensor that has no view may stand in a checkpoint all the same, since nothing would read it."""
        return name.endswith("rotary_emb.inv_freq") or (name == f"{HEAD}.weight" and self.config.tie_word_embeddings)

    def _angles(self, device: torch.device) -> list[torch.Tensor]:
        """Return each layer's tables of angles; layers with the same rope share them."""
        config = self.config
        everywhere = cos_sin_table(config.rope, config.head_dim, self.rope_tables).to(device)
        local = everywhere
        if config.local_rope is not None:
            local = cos_sin_table(config.local_rope, config.head_dim, self.rope_tables).to(device)
        return [everywhere if window is None else local for window in config.windows]
