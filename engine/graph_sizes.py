"""For how many sequences decode steps are recorded, and which recording serves a step.

Knows numbers of sequences. Does not know recordings or tensors.

A step of n sequences replays the smallest recording that holds n; the rows beyond are padding. Sizes are close together
where a row more costs most in proportion, and a recording is only a list of launches over memory that all share.
"""

from bisect import bisect_left

SMALL = (1, 2, 4)
STEPS = ((64, 8), (256, 16))  # up to so many sequences, sizes lie so far apart; beyond, WIDE
WIDE = 64


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Return the sizes to record, ascending; the last one is `max_num_seqs`."""
    sizes = {size for size in SMALL if size < max_num_seqs}
    start = 0
    for end, step in (*STEPS, (max_num_seqs, WIDE)):
        sizes |= set(range(start + step, min(end, max_num_seqs) + 1, step))
        start = end
    return tuple(sorted(sizes | {max_num_seqs}))


def smallest_fitting(num_seqs: int, sizes: tuple[int, ...]) -> int | None:
    """Return the smallest of ascending `sizes` that holds so many sequences, None where none does."""
    index = bisect_left(sizes, num_seqs)
    return sizes[index] if index < len(sizes) else None
