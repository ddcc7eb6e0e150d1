"""Qwen2 and Qwen2.5: biases on queries, keys and values; upper layers may be windowed. Source: arXiv 2407.10671."""

from engine.models.decoder import Decoder


class Qwen2(Decoder):
    """The shared decoder; biases and windows come with the configuration."""
