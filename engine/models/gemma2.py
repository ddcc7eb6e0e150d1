"""Gemma 2: windows in every other layer, soft caps, four norms a layer, embeddings scaled by sqrt(C).

Source: Gemma 2 (arXiv 2408.00118).
"""

import torch

from engine.layers.decoder_layer import SandwichLayer
from engine.layers.norms import ZeroCentredRMSNorm
from engine.models.decoder import Decoder


class Gemma2Layer(SandwichLayer):
    """The sandwich layer with Gemma's norms."""

    norm_class = ZeroCentredRMSNorm


class Gemma2(Decoder):
    """The shared decoder made of these layers."""

    layer_class = Gemma2Layer
    norm_class = ZeroCentredRMSNorm

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [T] to [T, C]."""
        return self.embedding(token_ids).mul_(self.config.hidden_size**0.5)
