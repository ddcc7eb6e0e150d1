"""How long ranks take to exchange bytes.

Knows numbers of ranks, sizes and a link. Does not know what is exchanged, or why.

A message costs `hop_s + bytes / bandwidth`, a collective `start_s` more: the model of Thakur, Rabenseifner and Gropp
(Optimization of Collective Communication Operations in MPICH, 2005); the pipelined pair of trees is that of Sanders,
Speck and Traeff (2009). Of several ways the fastest is taken, as libraries do.
"""

import math

from scripts.planner.devices import Link


def all_reduce(num_bytes: float, num_ranks: int, link: Link) -> float:
    """Return the seconds until each rank has the sum of `num_bytes` from each rank."""
    if num_ranks == 1:
        return 0.0
    others, once = num_ranks - 1, num_bytes / link.bandwidth
    ring = 2 * others * link.hop_s + 2 * others / num_ranks * once
    trees = 2 * math.ceil(math.log2(num_ranks)) * link.hop_s + 2 * once
    one_shot = link.hop_s + others * once
    return link.start_s + min(ring, trees, one_shot)


def all_gather(num_bytes: float, num_ranks: int, link: Link) -> float:
    """Return the seconds until each rank has all of `num_bytes`, of which it had its part."""
    if num_ranks == 1:
        return 0.0
    hops = math.ceil(math.log2(num_ranks))
    return link.start_s + hops * link.hop_s + (num_ranks - 1) / num_ranks * num_bytes / link.bandwidth


def all_to_all(num_bytes: float, num_ranks: int, link: Link) -> float:
    """Return the seconds until each rank has sent `num_bytes`, to all ranks alike, its own part staying."""
    if num_ranks == 1:
        return 0.0
    others = num_ranks - 1
    return link.start_s + others * link.hop_s + others / num_ranks * num_bytes / link.bandwidth


def broadcast(num_bytes: float, num_ranks: int, link: Link) -> float:
    """Return the seconds until each rank has what one had."""
    if num_ranks == 1:
        return 0.0
    hops = math.ceil(math.log2(num_ranks))
    return link.start_s + hops * link.hop_s + num_bytes / link.bandwidth
