"""Gemma 3: Gemma 2 with norms on queries and keys instead of soft caps, and two ropes. Source: arXiv 2503.19786."""

from engine.layers.attention import NormedAttention
from engine.layers.checkpoint import Views, prefixed
from engine.layers.norms import ZeroCentredRMSNorm
from engine.models.gemma2 import Gemma2, Gemma2Layer

LANGUAGE = "language_model"
VISION = ("vision_tower.", "multi_modal_projector.")


class Gemma3Attention(NormedAttention):
    """Attention with Gemma's norms on queries and keys."""

    norm_class = ZeroCentredRMSNorm


class Gemma3Layer(Gemma2Layer):
    """Gemma 2's layer with this attention."""

    attention_class = Gemma3Attention


class Gemma3(Gemma2):
    """Gemma 2's decoder made of these layers."""

    layer_class = Gemma3Layer


class Gemma3WithVision(Gemma3):
    """The language model of a checkpoint that also reads images; its other tensors are passed over."""

    def weight_views(self) -> Views:
        """Return where each tensor of the language model goes."""
        return prefixed(LANGUAGE, super().weight_views())

    def is_redundant(self, name: str) -> bool:
        """Whether a tensor that has no view may stand in a checkpoint all the same."""
        return name.startswith(VISION) or super().is_redundant(name.removeprefix(f"{LANGUAGE}."))
