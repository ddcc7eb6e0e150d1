"""One token for each row of logits: the likeliest, or one drawn from the distribution that the row's options leave.

    x[i] = (y[i] / penalty[i] if y[i] > 0 else y[i] * penalty[i]) + added[i],   minus infinity where a guide forbids i
    w[i] = exp((x[i] - max x) / temperature)
    kept = the shortest beginning of the tokens, by falling w and then rising id, that top_k, then top_p of what top_k
           left, and min_p (w[i] >= min_p) allow; never empty
    token = the first i of `kept`, by rising id, with  sum of w over kept ids up to i  >  point * sum of w over kept

A temperature of 0 takes the first of the largest logits. A row whose largest logit is not finite (a NaN anywhere, an
infinity, or nothing left) has no token; its maximum says so.

y are the logits that are given; what is changed of them is a short list a row. Contract, kept by every implementation:
sums in fp32 blocks or wider; a row's token depends on that row alone; rows that change no logits pay nothing for those
that do; on a device the host waits for nothing.

Sources: top-p is nucleus sampling (arXiv 1904.09751), min-p arXiv 2407.01082, the repetition penalty CTRL (arXiv
1909.05858), section 4.1.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels import choice
from kernels.draw_token.reference import draw_tokens_reference

__all__ = ["DrawTokens", "Draws", "Edits", "draw_tokens_reference", "select"]


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


@dataclass(slots=True, frozen=True)
class Edits:
    """What is changed of the logits of R rows before one is chosen; tensors on the logits' device.

    Attributes:
        starts: [R + 1] int32; a row's changes are number starts[row] and on, before starts[row + 1].
        ids: [n] int64, tokens, each at most once in a row.
        penalties: [n] fp32 above 0, 1 for none.
        added: [n] fp32, minus infinity to forbid the token.
        guides: [R] int32, the row of `allowed` that says what may be chosen, -1 for everything.
        allowed: [G, V] bool, contiguous.
    """

    starts: torch.Tensor
    ids: torch.Tensor
    penalties: torch.Tensor
    added: torch.Tensor
    guides: torch.Tensor
    allowed: torch.Tensor


class DrawTokens(Protocol):
    """Signature of the operation."""

    def __call__(
        self, logits: torch.Tensor, draws: Draws, edits: Edits | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose.

        Args:
            logits: [R, V] fp32, contiguous; the edits are made in place.
            draws: how.
            edits: what is changed before; None for nothing.

        Returns:
            Token ids [R] int64 and the rows' largest logits [R] fp32, edited; where one is not finite (NaN included),
            the id is in the vocabulary and means nothing.
        """
        ...


def select(device: torch.device) -> DrawTokens:
    """Return the implementation for tensors on `device`."""
    if device.type == "cuda":
        return choice.triton_kernel("draw_token").draw_tokens_triton
    return choice.cpu_kernel("draw_token").draw_tokens_cpu if device.type == "cpu" else draw_tokens_reference
