"""Tiles whose sums several programs share out (split K), in the Triton language.

A product of few rows has few tiles, fewer than a GPU has multiprocessors, and each walks over many channels. Split, a
tile is several programs' work, each with a share of the channels; the one that ends last adds the shares up, always in
the same order. Knows shares and counters. Does not know what is summed.
"""

from functools import cache

import torch
import triton
import triton.language as tl

MOST_SPLITS = 4
UNSPLIT_FROM = 10  # major capability: there what adds up the parts spills in the loop before
LARGEST_COUNT = 1 << 16  # tiles that are split


@triton.jit
def share_of(num_channels, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    """Return the first channel of this program's share, which is a multiple of BLOCK, and the end of it."""
    share = tl.cdiv(tl.cdiv(num_channels, BLOCK), SPLITS) * BLOCK
    first = tl.program_id(1) * share
    return first, tl.minimum(first + share, num_channels)


@triton.jit
def add_up(sums, parts, counters, SPLITS: tl.constexpr):
    """Return the sums of all shares of this program's tile, and whether it is the program that has them.

    Args:
        sums: this program's, [A, B].
        parts: room for the shares of all tiles, [tiles, SPLITS, A, B] in the sums' type.
        counters: [tiles] int32, zero before and after.
        SPLITS: shares of a tile.
    """
    A: tl.constexpr = sums.shape[0]
    B: tl.constexpr = sums.shape[1]
    tile, split = tl.program_id(0), tl.program_id(1)
    inside = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    part = parts + tile * (SPLITS * A * B) + inside
    tl.store(part + split * (A * B), sums)
    tl.debug_barrier()  # the whole program has stored before it counts itself
    is_last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        sums = tl.zeros((A, B), sums.dtype)
        for number in tl.static_range(SPLITS):
            sums += tl.load(part + number * (A * B), cache_modifier=".cg")
        tl.store(counters + tile, 0)
    return sums, is_last


def choose_num_splits(num_tiles: int, most: int, per_multiprocessor: int, device: torch.device) -> int:
    """Return how many programs share a tile, a power of two.

    Args:
        num_tiles: of the product.
        most: blocks of channels there are to share.
        per_multiprocessor: programs up to which more are faster.
        device: where they run.
    """
    if num_tiles > LARGEST_COUNT:
        return 1
    room = per_multiprocessor * _num_multiprocessors(device)
    shares = max(1, min(room // num_tiles, most, MOST_SPLITS))
    return 1 << (shares.bit_length() - 1)


@cache
def _num_multiprocessors(device: torch.device) -> int:
    """Return how many there are; of a GPU that gains nothing by splits, none."""
    if device.type != "cuda":
        return 8
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count if properties.major < UNSPLIT_FROM else 0


@cache
def counters_on(device: torch.device) -> torch.Tensor:
    """Return what programs of a split tile count themselves by; zero between launches, which follow each other."""
    return torch.zeros(LARGEST_COUNT, dtype=torch.int32, device=device)
