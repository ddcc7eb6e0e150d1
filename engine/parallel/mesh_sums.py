"""Sums and gathers of tensors on the host, over a mesh.

Knows how numbers go around. Does not know sockets or layers.

Invariant: parts are added in the order of their ranks, so that all ranks get the same bits.
"""

import torch

from engine.parallel.mesh import Mesh
from engine.parallel.shares import even_share

ONE_SHOT_BYTES = 1 << 16


def sum_over(mesh: Mesh, values: torch.Tensor) -> torch.Tensor:
    """Replace `values`, contiguous and of one shape on all ranks, by their sum over the ranks, and return them.

    Few bytes, or those of two ranks, go whole to every rank. Of more each rank adds up a share and tells it to all,
    which takes a second message and sends 2 (n - 1) / n times the bytes instead of n - 1 times.
    """
    flat, num_ranks = values.view(-1), mesh.num_ranks
    if num_ranks == 2 or values.nbytes <= ONE_SHOT_BYTES:
        _add_up(mesh, [flat] * num_ranks)
        return values
    ranges = [even_share(len(flat), num_ranks, rank) for rank in range(num_ranks)]
    shares = [flat[each.start : each.stop] for each in ranges]
    _add_up(mesh, shares)
    mesh.swap(
        {other: _bytes_of(shares[mesh.rank]) for other in mesh.others},
        {other: _bytes_of(shares[other]) for other in mesh.others},
    )
    return values


def gather_over(mesh: Mesh, values: torch.Tensor) -> list[torch.Tensor] | None:
    """Return every rank's values, contiguous and of one shape, on rank 0, and None on others."""
    if mesh.rank:
        mesh.swap({0: _bytes_of(values.view(-1))}, {})
        return None
    parts = [values, *(torch.empty_like(values) for _ in mesh.others)]
    mesh.swap({}, {other: _bytes_of(parts[other].view(-1)) for other in mesh.others})
    return parts


def _add_up(mesh: Mesh, parts: list[torch.Tensor]) -> None:
    """Send `parts[r]` to each rank r, and replace this rank's own, in place, by the sum of what all have for it."""
    mine = parts[mesh.rank]
    taken = [mine if rank == mesh.rank else torch.empty_like(mine) for rank in range(mesh.num_ranks)]
    mesh.swap(
        {other: _bytes_of(parts[other]) for other in mesh.others},
        {other: _bytes_of(taken[other]) for other in mesh.others},
    )
    total = taken[0] + taken[1]
    for part in taken[2:]:
        total += part
    mine.copy_(total)


def _bytes_of(values: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous vector."""
    return values.numpy().view("u1").data
