"""Qwen3-MoE: Qwen3 with experts in some or all layers. Source: Qwen3 (arXiv 2505.09388)."""

from engine.models.qwen3 import Qwen3


class Qwen3MoE(Qwen3):
    """Qwen3's decoder; the experts come with the configuration."""
