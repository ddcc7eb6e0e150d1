"""In which order unused blocks lose their content: the least recently released leaf first.

Knows block ids and whether another remembered block continues them. Does not know content, references or sequences.

A prefix can only be found through its first blocks, so forgetting a parent before its child would waste the child.
Invariants:
1. A block is taken before one that has been released later, unless it is inner and there is a leaf.
2. Inner blocks are taken only when no leaf is left (their children are in use; that happens where a window has passed
   the parents by, or where two sequences computed the same content at once), the longest known first.
"""

import heapq


class EvictionOrder:
    """Unused blocks with content. Entries of the heap whose tick is not the block's own are stale and skipped."""

    def __init__(self) -> None:
        """Start empty."""
        self._clock = 0
        self._ticks: dict[int, int] = {}
        self._inner: dict[int, None] = {}
        self._leaves: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Blocks that `pop` could return."""
        return len(self._ticks)

    def __contains__(self, block: int) -> bool:
        """Whether the block is unused."""
        return block in self._ticks

    def add(self, block: int, *, is_leaf: bool) -> None:
        """Take in a block that has just been released."""
        self._clock += 1
        self._ticks[block] = self._clock
        if is_leaf:
            self._push(block)
        else:
            self._inner[block] = None

    def discard(self, block: int) -> None:
        """Drop a block that is used again."""
        del self._ticks[block]
        self._inner.pop(block, None)

    def set_leaf(self, block: int, *, is_leaf: bool) -> None:
        """Note that a block has lost its last remembered child, or gained its first; a used block is ignored."""
        if block not in self._ticks or is_leaf == (block not in self._inner):
            return
        if is_leaf:
            del self._inner[block]
            self._push(block)
        else:
            self._inner[block] = None

    def pop(self) -> int:
        """Take out the block whose content is to be forgotten now; there must be one."""
        while self._leaves:
            tick, block = heapq.heappop(self._leaves)
            if self._is_leaf(tick, block):
                del self._ticks[block]
                return block
        block = next(iter(self._inner))
        self.discard(block)
        return block

    def leaves(self) -> set[int]:
        """Return the blocks that no remembered block continues, for checks."""
        return self._ticks.keys() - self._inner.keys()

    def _is_leaf(self, tick: int, block: int) -> bool:
        return self._ticks.get(block) == tick and block not in self._inner

    def _push(self, block: int) -> None:
        heapq.heappush(self._leaves, (self._ticks[block], block))
        if len(self._leaves) > 2 * len(self._ticks) + 64:
            self._leaves = [entry for entry in self._leaves if self._is_leaf(*entry)]
            heapq.heapify(self._leaves)
