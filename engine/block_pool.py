"""Which KV-cache blocks are in use, cached by content, or free.

Knows block ids, reference counts and content hashes. Does not know tensors, sequences or scheduling.

Invariants, checked by `check`:
1. num_free + num_cached + num_used == num_blocks.
2. A block with references is used; without references it is cached while its content is known, else free.
3. A content hash names at most one block, and that block carries the hash.
4. Content is forgotten in `EvictionOrder`, whose leaves are the cached blocks that no named block continues.
"""

from engine.errors import OutOfBlocks
from engine.eviction_order import EvictionOrder


class BlockPool:
    """Hands out blocks, finds full ones again by content, and forgets content where blocks are short.

    Attributes:
        num_blocks: size of the pool.
        ref_counts: references on each block.
        num_releases: how often a block has lost its last reference; while this stands, no room has been made.
    """

    def __init__(self, num_blocks: int) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self.num_releases = 0
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._parents: list[bytes] = [b""] * num_blocks
        self._num_children: dict[bytes, int] = {}
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached = EvictionOrder()

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
            block = self._cached.pop()
            self._forget(block)
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
            self._cached.discard(block)
        self.ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Give one reference back."""
        self.ref_counts[block] -= 1
        if self.ref_counts[block] > 0:
            return
        self.num_releases += 1
        content_hash = self._hashes[block]
        if content_hash is None:
            self._free.append(block)
        else:
            self._cached.add(block, is_leaf=content_hash not in self._num_children)

    def remember(self, block: int, content_hash: bytes, parent: bytes) -> None:
        """Name a full block by its content, behind `parent`; where a block has that content already nothing changes."""
        if self._hashes[block] is not None or content_hash in self._by_hash:
            return
        self._hashes[block] = content_hash
        self._parents[block] = parent
        self._by_hash[content_hash] = block
        self._num_children[parent] = self._num_children.get(parent, 0) + 1
        self._mark_parent(parent, is_leaf=False)

    def is_full(self, block: int) -> bool:
        """Tell whether the block's content is known, so that sequences may share it."""
        return self._hashes[block] is not None

    def check(self) -> None:
        """Assert the invariants of this module."""
        used = {b for b in range(self.num_blocks) if self.ref_counts[b] > 0}
        free, cached = set(self._free), {b for b in range(self.num_blocks) if b in self._cached}
        assert len(free) == len(self._free)
        assert len(cached) == len(self._cached)
        assert min(self.ref_counts, default=0) >= 0
        assert not used & free and not used & cached and not free & cached
        assert len(used) + len(free) + len(cached) == self.num_blocks
        assert all(self._hashes[block] == content for content, block in self._by_hash.items())
        assert all((self._hashes[b] is not None) == (b in cached) for b in free | cached)
        assert sum(h is not None for h in self._hashes) == len(self._by_hash)
        assert self._cached.leaves() == {b for b in cached if self._hashes[b] not in self._num_children}
        assert sum(self._num_children.values()) == len(self._by_hash)

    def _forget(self, block: int) -> None:
        content_hash, parent = self._hashes[block], self._parents[block]
        assert content_hash is not None
        del self._by_hash[content_hash]
        self._hashes[block] = None
        self._num_children[parent] -= 1
        if not self._num_children[parent]:
            del self._num_children[parent]
            self._mark_parent(parent, is_leaf=True)

    def _mark_parent(self, parent: bytes, *, is_leaf: bool) -> None:
        block = self._by_hash.get(parent)
        if block is not None:
            self._cached.set_leaf(block, is_leaf=is_leaf)
