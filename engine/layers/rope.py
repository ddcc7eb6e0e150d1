"""Rotary position embedding: the table of angles.

Knows frequencies and how checkpoints stretch them. Does not know queries, keys or batches.

Sources: RoFormer (arXiv 2104.09864); linear scaling (arXiv 2306.15595); the "llama3" rule as published with Llama 3.1;
YaRN (arXiv 2309.00071), section 3.3 for the dynamic rule; LongRoPE (arXiv 2402.13753).
"""

import math
from collections.abc import Callable

import torch

from engine.models.rope_config import RopeConfig, RopeTables


def inverse_frequencies(rope: RopeConfig, head_dim: int, longest: int) -> tuple[torch.Tensor, float]:
    """Return the rotation per position of each pair of turning channels, [R/2] fp32, and a factor on cosines and sines.

    Args:
        rope: the kind and its options.
        head_dim: channels of a head; `rope.partial` of them turn.
        longest: the longest sequence that will be turned so.
    """
    rotary_dim = int(head_dim * rope.partial)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    return STRETCHES[rope.kind](rope.theta**exponents, rope, longest)


def cos_sin_table(rope: RopeConfig, head_dim: int, tables: RopeTables) -> torch.Tensor:
    """Return cosines and sines of every position of all tables, [P, 2, R/2] fp32."""
    parts: list[torch.Tensor] = []
    for longest, num_rows in zip(tables.lengths, tables.num_rows, strict=True):
        frequencies, factor = inverse_frequencies(rope, head_dim, longest)
        angles = torch.outer(torch.arange(num_rows, dtype=torch.float32), frequencies)
        parts.append(torch.stack((angles.cos() * factor, angles.sin() * factor), dim=1))
    return torch.cat(parts)


def _plain(periods: torch.Tensor, _: RopeConfig, __: int) -> tuple[torch.Tensor, float]:
    return 1.0 / periods, 1.0


def _linear(periods: torch.Tensor, rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    return 1.0 / periods / rope.options["factor"], 1.0


def _dynamic(periods: torch.Tensor, rope: RopeConfig, longest: int) -> tuple[torch.Tensor, float]:
    trained, factor, num_pairs = rope.options["max_position_embeddings"], rope.options["factor"], len(periods)
    growth = factor * max(longest, trained) / trained - (factor - 1)
    exponents = torch.arange(num_pairs, dtype=torch.float32) / max(num_pairs - 1, 1)
    return 1.0 / (periods * growth**exponents), 1.0


def _llama3(periods: torch.Tensor, rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    frequencies, options = 1.0 / periods, rope.options
    factor, original = options["factor"], options["original_max_position_embeddings"]
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    is_medium = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_medium, blended, stretched), 1.0


def _yarn(periods: torch.Tensor, rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    options, num_pairs = rope.options, len(periods)
    low, high = _yarn_range(rope, 2 * num_pairs)
    ramp = ((torch.arange(num_pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    frequencies = 1.0 / (options["factor"] * periods) * (1 - kept) + 1.0 / periods * kept
    return frequencies, _yarn_attention_factor(options)


def _yarn_range(rope: RopeConfig, rotary_dim: int) -> tuple[float, float]:
    """Return between which pairs of channels frequencies go from kept to divided by the factor."""
    options = rope.options

    def pair_with(num_rotations: float) -> float:
        original = options["original_max_position_embeddings"]
        return rotary_dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with(options.get("beta_fast") or 32), pair_with(options.get("beta_slow") or 1)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(options: dict[str, float]) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(options["factor"]) + 1.0 if options["factor"] > 1 else 1.0

    if "attention_factor" in options:
        return options["attention_factor"]
    if options.get("mscale") and options.get("mscale_all_dim"):
        return scale(options["mscale"]) / scale(options["mscale_all_dim"])
    return scale(1.0)


def _longrope(periods: torch.Tensor, rope: RopeConfig, longest: int) -> tuple[torch.Tensor, float]:
    options = rope.options
    original, factor = options["original_max_position_embeddings"], options["factor"]
    stretch = options["long_factor"] if longest > original else options["short_factor"]
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return 1.0 / (torch.tensor(stretch, dtype=torch.float32) * periods), options.get("attention_factor", grown)


STRETCHES: dict[str, Callable[[torch.Tensor, RopeConfig, int], tuple[torch.Tensor, float]]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
