"""Names for full KV-cache blocks: a chained digest of every token up to the block's end.

Knows token ids and digests. Does not know blocks, sequences or memory.

Invariant: two digests are equal only where all tokens from the start up to the block's end are equal, up to a collision
of a 128-bit BLAKE2 digest.
"""

from array import array
from hashlib import blake2b

DIGEST_BYTES = 16
ROOT = b""


def block_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Return the name of the full block that holds `token_ids` behind block `parent` (`ROOT` for the first)."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


def block_hashes(token_ids: list[int], block_size: int) -> list[bytes]:
    """Return the names of all full blocks of `token_ids`, first to last."""
    names: list[bytes] = []
    parent = ROOT
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        names.append(parent)
    return names
