"""Which KV-cache blocks are in use, cached by content, or free.

Knows block ids, reference counts and content hashes. Does not know tensors, sequences or scheduling.

Invariants, checked by `check`:
1. num_free + num_cached + num_used == num_blocks.
2. A block with references is used; without references it is cached while its content is known, else free.
3. A content hash names at most one block, and that block carries the hash.
"""

from collections import OrderedDict

from engine.errors import OutOfBlocks


class BlockPool:
    """Hands out blocks, finds full ones again by content, and forgets the least recently released content first."""

    def __init__(self, num_blocks: int) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out now, free and cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_free(self) -> int:
        """Blocks without content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses but whose content is known."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - self.num_available

    def allocate(self) -> int:
        """Take a block with one reference and unknown content.

        Raises:
            OutOfBlocks: every block is in use.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block = self._forget_oldest()
        else:
            raise OutOfBlocks(self.num_blocks)
        self.ref_counts[block] = 1
        return block

    def find(self, content_hash: bytes) -> int | None:
        """Return the block with this content without taking a reference, or None."""
        return self._by_hash.get(content_hash)

    def acquire(self, block: int) -> None:
        """Take one more reference on a used or cached block."""
        if self.ref_counts[block] == 0:
            del self._cached[block]
        self.ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Give one reference back."""
        self.ref_counts[block] -= 1
        if self.ref_counts[block] > 0:
            return
        if self._hashes[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def remember(self, block: int, content_hash: bytes) -> None:
        """Name a full block by its content; where another block has that content already, nothing changes."""
        if self._hashes[block] is None and content_hash not in self._by_hash:
            self._hashes[block] = content_hash
            self._by_hash[content_hash] = block

    def is_full(self, block: int) -> bool:
        """Tell whether the block's content is known, so that sequences may share it."""
        return self._hashes[block] is not None

    def check(self) -> None:
        """Assert the invariants of this module."""
        used = {b for b in range(self.num_blocks) if self.ref_counts[b] > 0}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free)
        assert min(self.ref_counts, default=0) >= 0
        assert not used & free and not used & cached and not free & cached
        assert len(used) + len(free) + len(cached) == self.num_blocks
        assert all(self._hashes[block] == content for content, block in self._by_hash.items())
        assert all((self._hashes[b] is not None) == (b in cached) for b in free | cached)
        assert sum(h is not None for h in self._hashes) == len(self._by_hash)

    def _forget_oldest(self) -> int:
        block, _ = self._cached.popitem(last=False)
        content_hash = self._hashes[block]
        if content_hash is not None:
            del self._by_hash[content_hash]
            self._hashes[block] = None
        return block
