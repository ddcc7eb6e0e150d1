"""Rotary position embedding: the table of angles.

Knows frequencies and how checkpoints stretch them. Does not know queries, keys or batches.

Sources: RoFormer (arXiv 2104.09864); linear scaling and the "llama3" rule as published with Llama 3.1.
"""

import math

import torch

from engine.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Return the rotation per position of each pair of channels, [D/2] fp32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.options["factor"]
    if rope.kind == "llama3":
        return _llama3(frequencies, rope.options)
    return frequencies


def cos_sin_table(rope: RopeConfig, head_dim: int, num_positions: int) -> torch.Tensor:
    """Return cosines and sines of every position, [P, 2, D/2] fp32."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    return torch.stack((angles.cos(), angles.sin()), dim=1).contiguous()


def _llama3(frequencies: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
    factor, original = options["factor"], options["original_max_position_embeddings"]
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    is_medium = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_medium, blended, stretched)
