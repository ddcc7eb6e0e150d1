"""Mistral: Llama's layers with a sliding window in all of them. Source: Mistral 7B (arXiv 2310.06825)."""

from engine.models.decoder import Decoder


class Mistral(Decoder):
    """The shared decoder; the window comes with the configuration."""
