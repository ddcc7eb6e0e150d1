"""One token for each row of logits: the likeliest, or one drawn from the distribution that the row's options leave.

    w[i] = exp((x[i] - max x) / temperature)
    kept = the shortest beginning of the tokens, by falling w and then rising id, that top_k, then top_p of what top_k
           left, and min_p (w[i] >= min_p) allow; never empty
    token = the first i of `kept`, by rising id, with  sum of w over kept ids up to i  >  point * sum of w over kept

A temperature of 0 takes the first of the largest logits. A row whose largest logit is not finite (a NaN anywhere, an
infinity, or nothing left) has no token; its maximum says so.

Contract, kept by every implementation: sums in fp32 blocks or wider; a row's token depends on that row alone; on a
device the host waits for nothing.

Sources: top-p is nucleus sampling (arXiv 1904.09751), min-p arXiv 2407.01082.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels import choice
from kernels.draw_token.reference import draw_tokens_reference

__all__ = ["DrawTokens", "Draws", "draw_tokens_reference", "select"]


@dataclass(slots=True, frozen=True)
class Draws:
    """How each of the R rows chooses; tensors on the logits' device.

    Attributes:
        temperature: [R] fp64, 0 is greedy.
        top_k: [R] int64, 0 keeps all.
        top_p: [R] fp64, 1 keeps all.
        min_p: [R] fp64, 0 keeps all.
        point: [R] fp64 in [0, 1), the row's random number.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    point: torch.Tensor


class DrawTokens(Protocol):
    """Signature of the operation."""

    def __call__(self, logits: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose.

        Args:
            logits: [R, V] fp32, rows contiguous; not changed.
            draws: how.

        Returns:
            Token ids [R] int64 and the rows' largest logits [R] fp32; where one is not finite (NaN included), the id is
            in the vocabulary and means nothing.
        """
        ...


def select(device: torch.device) -> DrawTokens:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("draw_token").draw_tokens_triton
    return choice.cpu_kernel("draw_token").draw_tokens_cpu if device.type == "cpu" else draw_tokens_reference
