"""Which blocks each sequence holds, and which of them it found in the prefix cache.

Knows sequences' block tables and the block pool. Does not know tensors or which sequence deserves a block.

Invariants:
1. A sequence's table holds just the blocks for its first n tokens, n being what `reserve` was last asked for.
2. A block stands in two tables only if it is full and its content is known.
3. Blocks are named only after their KV has been computed.
"""

from engine.block_pool import BlockPool
from engine.prefix_cache import ROOT, block_hash, block_hashes
from engine.sequence import Sequence


class KVManager:
    """Gives blocks to sequences and takes them back."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        """Start with an empty pool of `num_blocks` blocks of `block_size` tokens."""
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0..1."""
        return self.pool.num_used / self.pool.num_blocks

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Return how many more blocks the sequence needs to hold its first `num_tokens` tokens."""
        return -(-num_tokens // self.block_size) - len(sequence.block_table)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the sequence's first `num_tokens` tokens; False, with nothing changed, where blocks lack."""
        missing = self.num_missing_blocks(sequence, num_tokens)
        if missing > self.pool.num_available:
            return False
        sequence.block_table.extend(self.pool.allocate() for _ in range(missing))
        return True

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence without blocks room for all its tokens, cached ones first; False where blocks are short.

        At least the last token is left to compute, since its logits are wanted.
        """
        sequence.block_table = self._find_prefix(sequence)
        num_hits = len(sequence.block_table)
        for block in sequence.block_table:
            self.pool.acquire(block)
        if not self.reserve(sequence, sequence.num_tokens):
            self.release(sequence)
            return False
        sequence.num_computed_tokens = num_hits * self.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return True

    def register(self, sequence: Sequence) -> None:
        """Name the sequence's blocks that have become full and computed."""
        if not self.enable_prefix_caching:
            return
        hashes = sequence.block_hashes
        for index in range(len(hashes), sequence.num_computed_tokens // self.block_size):
            start = index * self.block_size
            tokens = sequence.token_ids[start : start + self.block_size]
            hashes.append(block_hash(hashes[-1] if hashes else ROOT, tokens))
            self.pool.remember(sequence.block_table[index], hashes[-1])

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back, the last ones first so that the start of a prefix is forgotten last."""
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        sequence.block_table = []
        sequence.block_hashes = []
        sequence.num_computed_tokens = 0

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not self.enable_prefix_caching:
            return []
        hits: list[int] = []
        names = block_hashes(sequence.token_ids[: sequence.num_tokens - 1], self.block_size)
        for name in names:
            block = self.pool.find(name)
            if block is None:
                break
            hits.append(block)
        sequence.block_hashes = names[: len(hits)]
        return hits
