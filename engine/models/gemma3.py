"""Gemma 3: Gemma 2 with norms on queries and keys instead of soft caps, and two ropes. Source: arXiv 2503.19786."""

from engine.layers.attention import NormedAttention
from engine.layers.norms import ZeroCentredRMSNorm
from engine.models.gemma2 import Gemma2, Gemma2Layer


class Gemma3Attention(NormedAttention):
    """Attention with Gemma's norms on queries and keys."""

    norm_class = ZeroCentredRMSNorm


class Gemma3Layer(Gemma2Layer):
    """Gemma 2's layer with this attention."""

    attention_class = Gemma3Attention


class Gemma3(Gemma2):
    """Gemma 2's decoder made of these layers."""

    layer_class = Gemma3Layer
