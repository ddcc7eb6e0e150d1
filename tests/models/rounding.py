"""Rounding and packing of weights, written down once more and slowly, number by number where it is about bits.

A `Rounded` holds what a format stores and what it means; models whose weights are what it means are the oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours stands in a word's i-th four bits
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Rounded:
    """A weight's tensors by the ends of their names, and what they mean, [O, C] fp32."""

    tensors: dict[str, torch.Tensor] = field(repr=False)
    meaning: torch.Tensor = field(repr=False)


Rounding = Callable[[torch.Tensor], Rounded]


def round_groups(
    weight: torch.Tensor, bits: int, groups: list[int], *, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values [O, C] and, for each group, scales and zeros [O, G]; `groups` is the group of each input."""
    top, w = 2**bits - 1, weight.double().numpy()
    count = max(groups) + 1
    values, scales, zeros = np.zeros(w.shape, int), np.zeros((len(w), count)), np.zeros((len(w), count), int)
    for row in range(len(w)):
        for group in range(count):
            columns = [c for c, g in enumerate(groups) if g == group]
            part = w[row, columns]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            scale = np.float16(2 * max(-low, high) / top if symmetric else (high - low) / top) or np.float16(1)
            zero = (top + 1) // 2 if symmetric else round(-low / float(scale))
            zero = min(max(zero, 1), top)
            scales[row, group], zeros[row, group] = scale, zero
            values[row, columns] = np.clip(np.round(part / float(scale)) + zero, 0, top)
    return values, scales, zeros


def mean(values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, groups: list[int]) -> torch.Tensor:
    """Return what values, scales and zeros mean."""
    return torch.from_numpy((values - zeros[:, groups]) * scales[:, groups]).float()


def pack(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Pack the last dimension into int32 words, the first number in the lowest bits, or as `order` says."""
    per_word = 32 // bits
    places = order or tuple(range(per_word))
    rows, width = values.shape
    words = np.zeros((rows, -(-width // per_word)), np.uint32)
    for row in range(rows):
        for word in range(words.shape[1]):
            for i, place in enumerate(places):
                column = word * per_word + place
                if column < width:
                    words[row, word] |= np.uint32(int(values[row, column]) << (bits * i))
    return torch.from_numpy(words.view(np.int32).copy())


def regular(num_inputs: int, size: int) -> list[int]:
    """Return the group of each input where groups are neighbours."""
    return [c // size for c in range(num_inputs)]


def awq(weight: torch.Tensor, group: int = 16) -> Rounded:
    """Autoawq's gemm layout."""
    groups = regular(weight.shape[1], group)
    values, scales, zeros = round_groups(weight, 4, groups, symmetric=False)
    tensors = {
        "qweight": pack(values.T, 4, AWQ_ORDER),
        "qzeros": pack(zeros.T, 4, AWQ_ORDER),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }
    return Rounded(tensors, mean(values, scales, zeros, groups))


def gptq(
    weight: torch.Tensor,
    *,
    bits: int = 4,
    group: int = 16,
    symmetric: bool = True,
    act_order: int | None = None,
    offset: int = 1,
    zero_bias: bool = False,
) -> Rounded:
    """AutoGPTQ's layout; `act_order` seeds the order of the inputs, `offset` is 1 in the format's first version."""
    groups = regular(weight.shape[1], group)
    if act_order is not None:
        shuffled = np.random.default_rng(act_order).permutation(len(groups))
        groups = [groups[i] for i in shuffled]
    values, scales, zeros = round_groups(weight, bits, groups, symmetric=symmetric)
    tensors = {
        "qweight": pack(values, bits).t().contiguous(),
        "qzeros": pack((zeros - offset).T, bits),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    if zero_bias:
        tensors["bias"] = torch.zeros(len(weight), dtype=torch.float16)
    return Rounded(tensors, mean(values, scales, zeros, groups))


def packed(weight: torch.Tensor, *, bits: int = 4, group: int = 16, symmetric: bool = True) -> Rounded:
    """compressed-tensors' pack-quantized; a group of 0 is a whole row."""
    groups = regular(weight.shape[1], group or weight.shape[1])
    values, scales, zeros = round_groups(weight, bits, groups, symmetric=symmetric)
    tensors = {
        "weight_packed": pack(values, bits),
        "weight_scale": torch.from_numpy(scales).half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack(zeros.T, bits).t().contiguous()
    return Rounded(tensors, mean(values, scales, zeros, groups))


def int8(weight: torch.Tensor) -> Rounded:
    """compressed-tensors' int-quantized: a scale for each output."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    scales[scales == 0] = 1
    values = (weight / scales).round()
    return Rounded({"weight": values.to(torch.int8), "weight_scale": scales}, values * scales)


def float8(weight: torch.Tensor, *, block: tuple[int, int] | None = None, name: str = "weight_scale") -> Rounded:
    """e4m3 with a scale for each block; None is one for the whole weight, without a dimension."""
    height, width = block or weight.shape
    values, meaning = torch.empty_like(weight, dtype=E4M3), torch.empty_like(weight)
    scales = torch.empty(-(-weight.shape[0] // height), -(-weight.shape[1] // width))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            where = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scales[i, j] = weight[where].abs().max() / 448 or 1
            values[where] = (weight[where] / scales[i, j]).to(E4M3)
            meaning[where] = values[where].float() * scales[i, j]
    return Rounded({"weight": values, name: scales.squeeze() if block is None else scales}, meaning)
