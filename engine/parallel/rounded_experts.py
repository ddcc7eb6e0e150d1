"""Experts that round their inputs on CPUs, spread over ranks: what one rank would answer, to the last bit.

Knows who computes which pair of a token and an expert. Does not know routing. Why answers must be exact says
`engine.parallel.rounded_layers`. Each pair is computed by one group; where a group splits its experts, its ranks agree
on the rows' largest magnitudes and add up whole numbers, once for all pairs of a layer. Then every rank gets the
answers of all pairs, which nobody else adds to, and adds up a token's in one rank's order: A times the bytes of a sum
of tokens.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch.nn import functional as F

from engine.layers.feed_forward import FeedForward
from engine.parallel.experts import Expert, ParallelDispatch
from engine.parallel.rounded_layers import RoundedPart


class RoundedDispatch(ParallelDispatch):
    """`ParallelDispatch` for experts of 8-bit integers."""

    _biases: torch.Tensor | None = None

    def __call__(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, experts: Sequence[Expert]
    ) -> torch.Tensor:
        """Map [T, C] to [T, C], complete on every rank; see the contract in `kernels.expert_dispatch`."""
        num_chosen = expert_ids.shape[1]
        mine = (self.owners(expert_ids) == self.place.ep_rank).flatten().nonzero().squeeze(1)
        ids = self._local[expert_ids].flatten()[mine]
        order = ids.argsort(stable=True)
        counts = ids.bincount(minlength=len(experts)).tolist()
        pairs = mine[order]
        found = self._compute_pairs(hidden[pairs // num_chosen], counts, experts)
        answers = hidden.new_zeros(expert_ids.numel(), hidden.shape[1])
        if self.place.config.ep == 1 or not self.place.tp_rank:
            answers[pairs] = found
        if self.place.config.ep > 1:
            self.ranks.sum_all(answers)
        places = torch.arange(len(answers)).view_as(expert_ids)
        return F.embedding_bag(places, answers, per_sample_weights=weights, mode="sum")

    def _compute_pairs(self, rows: torch.Tensor, counts: list[int], experts: Sequence[Expert]) -> torch.Tensor:
        """Map rows [n, C], sorted by expert, to the experts' answers [n, C], complete on every rank of this group."""
        if not len(rows):
            return rows
        used = [(expert, part) for expert, part in zip(experts, rows.split(counts), strict=True) if len(part)]
        if self.place.config.tp == 1:
            return torch.cat([expert(part) for expert, part in used])
        inner = [_inner(expert, part) for expert, part in used]
        downs = [_down(expert) for expert, _ in used]
        sizes = [len(part) for part in inner]
        tops = self.ranks.largest_within(torch.cat([down.largest(x) for down, x in zip(downs, inner, strict=True)]))
        found = [down.sums(x, top) for down, x, top in zip(downs, inner, tops.split(sizes), strict=True)]
        sums = self.ranks.sum_within(torch.cat([sums for sums, _ in found]))
        biases = [bias for bias, count in zip(self._shared_biases(experts), counts, strict=True) if count]
        for down, out, (_, row_scales), bias in zip(downs, sums.split(sizes), found, biases, strict=True):
            down.answer(out, row_scales, bias)
        return sums

    def _shared_biases(self, experts: Sequence[Expert]) -> torch.Tensor:
        """Return all local experts' biases, [E, C], which one rank of the group has."""
        if self._biases is None:
            self._biases = self.ranks.sum_within(torch.stack([_down(expert).bias for expert in experts]))
        return self._biases


def _inner(expert: Expert, rows: torch.Tensor) -> torch.Tensor:
    block = cast("FeedForward", expert)
    return block.activate(block.gate_up(rows))


def _down(expert: Expert) -> RoundedPart:
    return cast("RoundedPart", cast("FeedForward", expert).down)
