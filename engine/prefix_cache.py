"""Names for full KV-cache blocks: a chained digest of every token up to the block's end, and which names still count.

Knows token ids, salts, adapters' digests, tables of angles by their first rows, and a way to look a digest up. Does not
know sequences, references or memory.

Invariant: two digests are equal only where the salt, the adapter, the angles and all tokens from the start up to the
block's end are equal, up to a collision of a 128-bit BLAKE2 digest.
"""

from array import array
from collections.abc import Callable
from hashlib import blake2b

DIGEST_BYTES = 16


def root(salt: str, adapter_digest: bytes = b"", first_rope_row: int = 0) -> bytes:
    """Return the parent of a sequence's first block; sequences find each other's where all of these are equal."""
    if not salt and not adapter_digest and not first_rope_row:
        return b""
    person = first_rope_row.to_bytes(blake2b.PERSON_SIZE, "little")
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES, key=adapter_digest, person=person).digest()


def block_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Return the name of the full block that holds `token_ids` behind block `parent` (`root` for the first)."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


def find_prefix(
    names: list[bytes], find: Callable[[bytes], int | None], first_needed: Callable[[int], int]
) -> tuple[int, list[int]]:
    """Find the longest prefix of whole blocks that need not be computed again.

    Args:
        names: the sequence's block names, first to last.
        find: the block that has this content, or None.
        first_needed: the first block that whoever has `n` blocks behind it still reads: 0 under full attention, and
            later where a sliding window has passed blocks by.

    Returns:
        How many leading blocks are not needed at all, and the blocks after them, which are to be shared.
    """
    found: list[int | None] = []
    start = length = 0
    for end, name in enumerate(names, 1):
        found.append(find(name))
        if found[-1] is None:
            start = end
            if first_needed(len(names)) < start:
                break
        elif start <= first_needed(end):
            length = end
    first = first_needed(length)
    return first, [block for block in found[first:length] if block is not None]
