"""Quantized keys and values: one scale for each token and head, made when the token is stored.

    scale = max(|x|, SMALLEST_TOP) / LARGEST,   stored = round(x / scale),   read = stored * scale

Knows rows of D channels and the two types they may be stored in. Does not know caches or positions. Scales need no
calibration and depend on their own row only, so a block means the same to every sequence that shares it. A row with a
NaN has the scale NaN. int8 rounds halves to even; float8 is e4m3 without infinities (arXiv 2209.05433, section 3.1).

Source: one scale a token for keys and values, KIVI (arXiv 2402.02750), section 3, at eight bits.
"""

import torch

LARGEST: dict[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST_TOP = 1e-30  # rows below keep this scale: the inverse of a smaller one would be infinite


def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [..., D] as `dtype` and its scales, [...] fp32."""
    wide = x.float()
    top = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_TOP)
    scaled = wide * (LARGEST[dtype] / top)
    rounded = scaled.round() if dtype == torch.int8 else scaled
    return rounded.to(dtype), (top * (1.0 / LARGEST[dtype])).squeeze(-1)


def dequantize_rows(stored: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Return [..., D] fp32 of what `quantize_rows` gave; plain values, without scales, are widened."""
    wide = stored.float()
    return wide if scales is None else wide * scales.unsqueeze(-1)
