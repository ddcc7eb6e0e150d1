"""Which rank computes on which GPU.

Knows the GPUs' own names and who sees which of them. Does not know torch, processes or machines.

Invariant: no GPU is given to two ranks.
"""

from collections.abc import Mapping, Sequence

from engine.errors import ModelError


def deal_gpus(seen: Mapping[int, Sequence[str]]) -> dict[int, int]:
    """Return for each rank the index, among the GPUs that it sees, of the one that is its own.

    Who sees the fewest chooses first, the lowest rank among equals: a rank that was started with a GPU of its own, as
    Ray does it, gets that one, and ranks that see a whole machine share out the rest in their order.

    Args:
        seen: by rank, the names (UUIDs) of the GPUs that its process may use.

    Raises:
        ModelError: a rank finds none that is free.
    """
    taken: set[str] = set()
    seats: dict[int, int] = {}
    for rank in sorted(seen, key=lambda rank: (len(seen[rank]), rank)):
        free = [index for index, name in enumerate(seen[rank]) if name not in taken]
        if not free:
            num_sharing = sum(set(gpus) <= set(seen[rank]) for gpus in seen.values())
            raise ModelError(
                f"rank {rank} has no GPU: its machine shows {len(seen[rank])} to {num_sharing} ranks, and each needs "
                "one of its own"
            )
        seats[rank] = free[0]
        taken.add(seen[rank][free[0]])
    return seats
