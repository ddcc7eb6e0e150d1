"""Which blocks each sequence holds, and which of them it found in the prefix cache.

Knows sequences' block tables, the block pool and the model's window. Does not know tensors or who deserves a block.

Invariants, checked by `check`:
1. A running sequence's table covers its first n tokens, n being what `reserve` was last asked for, as far as a window
   lets it hold blocks at once. Entry i is always the place of tokens i * block_size and on.
2. The first `num_dropped_blocks` entries lie wholly before the window: they are `NULL_BLOCK`, hold no reference and are
   neither read nor written. All other entries hold one reference each.
3. A block stands in two tables only if it is full and its content is known.
4. Blocks are named only after their KV has been computed; those of a sequence that opted out are never named.
"""

from collections import Counter
from collections.abc import Iterable

from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.prefix_cache import block_hash, find_prefix, root
from engine.sequence import Sequence
from engine.sliding_window import SlidingWindow

NULL_BLOCK = 0


class KVManager:
    """Gives blocks to sequences and takes them back."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        window: SlidingWindow | None = None,
    ) -> None:
        """Start with an empty pool of `num_blocks` blocks of `block_size` tokens; `window` is that of all layers."""
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.window = window

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0..1."""
        return self.pool.num_used / self.pool.num_blocks

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Return how many more blocks the sequence needs to hold its first `num_tokens` tokens."""
        length = -(-num_tokens // self.block_size)
        if self.window is not None:
            length = min(length, sequence.num_dropped_blocks + self.window.max_held_blocks)
        return max(0, length - len(sequence.block_table))

    def num_outstanding_blocks(self, sequence: Sequence) -> int:
        """Return how many blocks more than now the sequence may take from the pool before it ends.

        Under a window a shared block counts as not held: giving it back would bring the pool nothing.
        """
        worst = -(-sequence.max_total_tokens // self.block_size)
        if self.window is None:
            return worst - len(sequence.block_table)
        own = sum(self.pool.ref_counts[b] == 1 for b in sequence.block_table[sequence.num_dropped_blocks :])
        return min(worst, self.window.max_held_blocks) - own

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the sequence's first `num_tokens` tokens; False, with nothing changed, where blocks lack."""
        missing = self.num_missing_blocks(sequence, num_tokens)
        if missing > self.pool.num_available:
            return False
        if missing:
            sequence.block_table.extend(self.pool.allocate() for _ in range(missing))
        return True

    def take_prefix(self, sequence: Sequence) -> None:
        """Give a sequence without blocks those that the cache has of it.

        At least the last token is left to compute, since its logits are wanted; all of them where something is wanted
        of each.
        """
        if not self._is_cacheable(sequence) or sequence.computes_every_token:
            return
        num_blocks = (sequence.num_tokens - 1) // self.block_size
        self._name_blocks(sequence, num_blocks)
        dropped, hits = find_prefix(sequence.block_hashes[:num_blocks], self.pool.find, self._first_needed)
        for block in hits:
            self.pool.acquire(block)
        sequence.block_table = [NULL_BLOCK] * dropped + hits
        sequence.num_dropped_blocks = dropped
        sequence.num_named_blocks = len(sequence.block_table)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size

    def first_missed_name(self, sequence: Sequence) -> bytes | None:
        """Return the name of the block behind what `take_prefix` found; None where nothing more could be found."""
        index, names = len(sequence.block_table), sequence.block_hashes
        num_findable = min(len(names), (sequence.num_tokens - 1) // self.block_size)
        return names[index] if index < num_findable else None

    def register(self, sequence: Sequence) -> None:
        """Name the sequence's blocks that have become full and computed, and give back those behind the window."""
        num_full = min(sequence.num_computed_tokens, sequence.num_known_tokens) // self.block_size
        if num_full > sequence.num_named_blocks and self._is_cacheable(sequence):
            self._name_blocks(sequence, num_full)
            hashes = sequence.block_hashes
            for index in range(sequence.num_named_blocks, num_full):
                parent = hashes[index - 1] if index else _root(sequence)
                self.pool.remember(sequence.block_table[index], hashes[index], parent)
            sequence.num_named_blocks = num_full
        if self.window is not None:
            self._drop_passed(sequence, self.window.first_needed_block(sequence.num_computed_tokens))

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back, the last ones first so that the start of a prefix is forgotten last."""
        for block in reversed(sequence.block_table[sequence.num_dropped_blocks :]):
            self.pool.release(block)
        sequence.block_table = []
        sequence.num_dropped_blocks = 0
        sequence.num_named_blocks = 0
        sequence.num_computed_tokens = 0

    def check(self, holders: Iterable[Sequence]) -> None:
        """Assert the invariants of this module and of the pool; `holders` are all sequences that have blocks."""
        self.pool.check()
        references: Counter[int] = Counter()
        for sequence in holders:
            num_dropped, table = sequence.num_dropped_blocks, sequence.block_table
            held = table[num_dropped:]
            assert sequence.num_computed_tokens <= len(table) * self.block_size
            assert num_dropped <= self._first_needed_of(sequence)
            assert table[:num_dropped] == [NULL_BLOCK] * num_dropped
            assert len(set(held)) == len(held)
            assert self.window is None or len(held) <= self.window.max_held_blocks
            references.update(held)
        assert all(self.pool.ref_counts[block] == count for block, count in references.items())
        assert self.pool.num_used == len(references)
        assert all(count == 1 or self.pool.is_full(block) for block, count in references.items())

    def _is_cacheable(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.scheduling.enable_prefix_cache

    def _first_needed(self, num_blocks: int) -> int:
        return 0 if self.window is None else self.window.first_needed_block(num_blocks * self.block_size)

    def _first_needed_of(self, sequence: Sequence) -> int:
        return 0 if self.window is None else self.window.first_needed_block(sequence.num_computed_tokens)

    def _name_blocks(self, sequence: Sequence, num_blocks: int) -> None:
        """Work out the names of the first `num_blocks` blocks; names stay known, since tokens never change."""
        hashes = sequence.block_hashes
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else _root(sequence)
            start = index * self.block_size
            hashes.append(block_hash(parent, sequence.token_ids[start : start + self.block_size]))

    def _drop_passed(self, sequence: Sequence, first_needed: int) -> None:
        """Give back the blocks before `first_needed`, the later ones first, and leave `NULL_BLOCK` in their places."""
        for index in range(first_needed - 1, sequence.num_dropped_blocks - 1, -1):
            self.pool.release(sequence.block_table[index])
            sequence.block_table[index] = NULL_BLOCK
        sequence.num_dropped_blocks = max(sequence.num_dropped_blocks, first_needed)


def make_kv_manager(config: EngineConfig, num_blocks: int, window: int | None) -> KVManager:
    """Return a manager of `num_blocks` blocks for a model whose layers all have this window, in tokens, or not all."""
    sliding = None if window is None else SlidingWindow(window, config.block_size, config.max_num_batched_tokens)
    return KVManager(num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching, window=sliding)


def _root(sequence: Sequence) -> bytes:
    adapter_digest = b"" if sequence.adapter is None else sequence.adapter.digest
    return root(sequence.scheduling.cache_salt, adapter_digest, sequence.first_rope_row)
