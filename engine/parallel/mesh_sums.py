"""Sums, largest values and gathers of tensors on the host, over a mesh.

Knows how numbers go around. Does not know sockets or layers.

Invariant: parts are added in the order of their ranks, so that all ranks get the same bits.
"""

from collections.abc import Callable, Sequence

import torch

from engine.parallel.mesh import Mesh
from engine.parallel.shares import even_share

ONE_SHOT_BYTES = 1 << 16
Join = Callable[..., torch.Tensor]  # of two, into `out` where one is given


def sum_over(mesh: Mesh, values: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Replace `values`, contiguous and of one shape on all of `ranks`, by their sum over these, and return them.

    Few bytes, or those of two ranks, go whole to every rank. Of more each rank adds up a share and tells it to all,
    which takes a second message and sends 2 (n - 1) / n times the bytes instead of n - 1 times.
    """
    return _join_over(mesh, values, ranks, torch.add)


def largest_over(mesh: Mesh, values: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Replace `values` by the largest of these ranks' for each element, NaN where one is, as `sum_over` does."""
    return _join_over(mesh, values, ranks, torch.maximum)


def gather_over(mesh: Mesh, values: torch.Tensor) -> list[torch.Tensor] | None:
    """Return every rank's values, contiguous and of one shape, on rank 0, and None on others."""
    if mesh.rank:
        mesh.swap({0: _bytes_of(values.view(-1))}, {})
        return None
    parts = [values, *(torch.empty_like(values) for _ in mesh.others)]
    mesh.swap({}, {other: _bytes_of(parts[other].view(-1)) for other in mesh.others})
    return parts


def _join_over(mesh: Mesh, values: torch.Tensor, ranks: Sequence[int], join: Join) -> torch.Tensor:
    flat, num_ranks = values.view(-1), len(ranks)
    if num_ranks == 1:
        return values
    if num_ranks == 2 or values.nbytes <= ONE_SHOT_BYTES:
        _join_shares(mesh, dict.fromkeys(ranks, flat), join)
        return values
    ranges = [even_share(len(flat), num_ranks, place) for place in range(num_ranks)]
    shares = {rank: flat[each.start : each.stop] for rank, each in zip(ranks, ranges, strict=True)}
    _join_shares(mesh, shares, join)
    others = [rank for rank in ranks if rank != mesh.rank]
    mesh.swap(
        {other: _bytes_of(shares[mesh.rank]) for other in others},
        {other: _bytes_of(shares[other]) for other in others},
    )
    return values


def _join_shares(mesh: Mesh, shares: dict[int, torch.Tensor], join: Join) -> None:
    """Send `shares[r]` to each rank r, and join, in place of this rank's own, what all have for it."""
    mine = shares[mesh.rank]
    taken = {rank: mine if rank == mesh.rank else torch.empty_like(mine) for rank in shares}
    others = [rank for rank in shares if rank != mesh.rank]
    mesh.swap(
        {other: _bytes_of(shares[other]) for other in others},
        {other: _bytes_of(taken[other]) for other in others},
    )
    first, second, *more = taken.values()
    if not more:
        join(first, second, out=mine)
        return
    total = join(first, second)
    for part in more:
        join(total, part, out=total)
    mine.copy_(total)


def _bytes_of(values: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous vector."""
    return values.numpy().view("u1").data
