"""One token for each row of logits: the likeliest, or one drawn from the distribution that the row's options leave.

    w[i] = exp((x[i] - max x) / temperature)
    kept = the shortest beginning of the tokens, by falling w and then rising id, that top_k, then top_p of what top_k
           left, and min_p (w[i] >= min_p) allow; never empty
    token = the first i of `kept`, by rising id, with  sum of w over kept ids up to i  >  point * sum of w over kept

A temperature of 0 takes the first of the largest logits. A row whose largest logit is not finite (a NaN anywhere, an
infinity, or nothing left) has no token: its `is_valid` is False.

Contract, kept by every implementation: sums in fp32 blocks or wider; a row's token depends on that row alone.

Sources: top-p is nucleus sampling (arXiv 1904.09751), min-p arXiv 2407.01082.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from kernels import choice
from kernels.draw_token.reference import draw_tokens_reference

__all__ = ["DrawTokens", "Draws", "draw_tokens_reference", "select"]


@dataclass(slots=True, frozen=True)
class Draws:
    """How each of the R rows chooses.

    Attributes:
        temperature: [R] fp64, 0 is greedy.
        top_k: [R] int64, 0 keeps all.
        top_p: [R] fp64, 1 keeps all.
        min_p: [R] fp64, 0 keeps all.
        point: [R] fp64 in [0, 1), the row's random number.
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    point: np.ndarray


class DrawTokens(Protocol):
    """Signature of the operation."""

    def __call__(self, logits: torch.Tensor, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Choose.

        Args:
            logits: [R, V] fp32, rows contiguous; not changed.
            draws: how.

        Returns:
            Token ids [R] int64 and `is_valid` [R] bool; the id of an invalid row means nothing.
        """
        ...


def select(device: torch.device) -> DrawTokens:
    """Return the implementation for tensors on `device`."""
    return choice.cpu_kernel("draw_token").draw_tokens_cpu if device.type == "cpu" else draw_tokens_reference
