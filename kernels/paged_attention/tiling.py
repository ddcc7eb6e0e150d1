"""How attention is cut into programs on a GPU.

Knows sizes. Does not know tensors, nor what a program computes.

A program takes `rows` rows, each a query token and one of the G query heads of a KV head, and walks `positions` keys at
a time. Tiles are cut where the sequence changes and at multiples of the tokens that fit, so tile number `token // fit +
sequence` is below (T - 1) // fit + S, and nobody has to wait for the device to count them.

Few tiles over long contexts leave a GPU idle, so each is split over its positions (flash-decoding) until there are two
programs for each multiprocessor, or somewhat fewer; a split gets 128 positions at least. The number follows from sizes
that the host has: T, S, K and the width of the block tables.
"""

from dataclasses import astuple, dataclass, replace
from typing import Literal

from kernels.tuning import Choices

Kind = Literal["decode", "prefill"]
KINDS: tuple[Kind, Kind] = ("decode", "prefill")
PROGRAMS_PER_MULTIPROCESSOR = 2
MIN_POSITIONS_OF_A_SPLIT = 128
MAX_SPLITS = 64
TOKENS_OF_A_SHORT_SEQUENCE = 8  # up to here, drafts, tiles of 16 rows: they compute least beside what they read


@dataclass(frozen=True, slots=True)
class Tiling:
    """Rows and positions of a program's tile, its warps and the stages of its pipeline."""

    rows: int
    positions: int
    num_warps: int
    num_stages: int


# By GPU (from that compute capability on), kind, bytes of a stored element (4 for fp32 queries) and D rounded up. The
# choice is that of `kernels.aot`: no spills in loops, and room for two programs a multiprocessor where they decode.
# Five stages because a key waits for its block's number: two of them are spent on that.
TILINGS: dict[tuple[int, Kind, int, int], Tiling] = {
    (80, "decode", 1, 64): Tiling(16, 32, 4, 5),
    (80, "decode", 1, 128): Tiling(16, 32, 4, 5),
    (80, "decode", 1, 256): Tiling(16, 32, 8, 5),
    (80, "decode", 2, 64): Tiling(16, 64, 4, 5),
    (80, "decode", 2, 128): Tiling(16, 64, 4, 5),
    (80, "decode", 2, 256): Tiling(16, 32, 4, 5),
    (80, "decode", 4, 64): Tiling(16, 32, 4, 3),
    (80, "decode", 4, 128): Tiling(16, 32, 4, 3),
    (80, "prefill", 1, 64): Tiling(128, 32, 8, 5),
    (80, "prefill", 1, 128): Tiling(128, 32, 8, 4),
    (80, "prefill", 1, 256): Tiling(64, 32, 8, 5),
    (80, "prefill", 2, 64): Tiling(128, 64, 8, 5),
    (80, "prefill", 2, 128): Tiling(128, 32, 8, 5),
    (80, "prefill", 2, 256): Tiling(64, 32, 8, 5),
    (80, "prefill", 4, 64): Tiling(32, 32, 4, 3),
    (80, "prefill", 4, 128): Tiling(16, 32, 4, 3),
    (90, "decode", 1, 64): Tiling(16, 64, 4, 5),
    (90, "decode", 1, 128): Tiling(16, 128, 4, 5),
    (90, "decode", 1, 256): Tiling(16, 32, 8, 5),
    (90, "decode", 2, 64): Tiling(16, 128, 4, 5),
    (90, "decode", 2, 128): Tiling(16, 64, 2, 4),
    (90, "decode", 2, 256): Tiling(16, 32, 4, 5),
    (90, "decode", 4, 64): Tiling(16, 32, 4, 3),
    (90, "decode", 4, 128): Tiling(16, 32, 4, 3),
    (90, "prefill", 1, 64): Tiling(128, 64, 8, 5),
    (90, "prefill", 1, 128): Tiling(128, 64, 8, 3),
    (90, "prefill", 1, 256): Tiling(64, 32, 8, 5),
    (90, "prefill", 2, 64): Tiling(128, 64, 8, 5),
    (90, "prefill", 2, 128): Tiling(128, 64, 8, 5),
    (90, "prefill", 2, 256): Tiling(64, 32, 8, 5),
    (90, "prefill", 4, 64): Tiling(32, 32, 4, 3),
    (90, "prefill", 4, 128): Tiling(16, 32, 4, 3),
    (100, "prefill", 1, 64): Tiling(128, 32, 8, 5),
    (100, "prefill", 1, 128): Tiling(128, 32, 8, 5),
    (100, "prefill", 2, 64): Tiling(128, 32, 8, 5),
}
PADDED_DIMS = (64, 128, 256)
TUNED_BYTES, TUNED_DIMS = 2, (64, 128)  # halves as they are; others have one tiling, which leaves no registers
TUNED_CAPABILITIES = (80, 90)  # what stands for 100 alone spills in a shorter pipeline
FEWEST_POSITIONS, FEWEST_STAGES = 32, 3
# Caches of 8 bits: in a wide tile a warp computes less for each position. At 128 channels it was measured to be faster,
# and is the table's.
WIDER = {(90, "decode", 1, 64): Tiling(16, 128, 4, 5)}


def options_of(key: tuple[int, Kind, int, int]) -> tuple[Tiling, ...]:
    """Return a tiling of the table and those that may be faster: half the positions, a shorter pipeline, or `WIDER`."""
    tiling, (capability, _, element_bytes, head_dim) = TILINGS[key], key
    if key in WIDER:
        return tiling, WIDER[key]
    if element_bytes != TUNED_BYTES or head_dim not in TUNED_DIMS or capability not in TUNED_CAPABILITIES:
        return (tiling,)
    fewer = replace(tiling, positions=max(FEWEST_POSITIONS, tiling.positions // 2))
    return tuple(dict.fromkeys((tiling, fewer, replace(tiling, num_stages=FEWEST_STAGES))))


def _class(key: tuple[int, Kind, int, int]) -> str:
    capability, kind, element_bytes, head_dim = key
    return f"sm_{capability} {kind}, {element_bytes} bytes, {head_dim} channels"


CHOICES = Choices({_class(key): tuple(astuple(option) for option in options_of(key)) for key in TILINGS})


def choose_kind(num_tokens: int, num_sequences: int) -> Kind:
    """Return the kind of tiles for a batch, by how many tokens a sequence has on average."""
    return "decode" if num_tokens <= TOKENS_OF_A_SHORT_SEQUENCE * num_sequences else "prefill"


def choose_tiling(capability: int, kind: Kind, element_bytes: int, head_dim: int, num_groups: int) -> Tiling:
    """Return the tiling for a GPU and keys of that many bytes an element, 4 for fp32 queries; one token's G rows fit.

    Raises:
        ValueError: there is none for that head size.
    """
    padded = next((dim for dim in PADDED_DIMS if dim >= head_dim), head_dim)
    known = [key for key in TILINGS if key[0] <= max(capability, 80) and key[1:] == (kind, element_bytes, padded)]
    if not known:
        raise ValueError(f"attention on a GPU takes heads of at most 256 channels, in fp32 128, not {head_dim}")
    tiling = Tiling(*CHOICES.of(_class(max(known))))
    return replace(tiling, rows=max(tiling.rows, 1 << (num_groups - 1).bit_length()))


def choose_num_splits(num_tiles: int, num_kv_heads: int, max_positions: int, num_multiprocessors: int) -> int:
    """Return how many programs share a tile's positions, a power of two."""
    wanted = max(1, PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // (num_tiles * num_kv_heads))
    useful = -(-max_positions // MIN_POSITIONS_OF_A_SPLIT)
    return min(MAX_SPLITS, 1 << (min(wanted, useful).bit_length() - 1))
