"""Which blocks a sequence still reads under sliding-window attention, and how many it holds at most.

Knows token positions and block numbers. Does not know block ids, sequences or memory.

A token at position p attends to the `size` positions up to and including p (the window of Mistral, arXiv 2310.06825).
This is of use only where every layer has a window: one layer of full attention reads all blocks.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class SlidingWindow:
    """A window over blocks; lengths in tokens.

    Attributes:
        size: positions that a token attends to, itself included.
        block_size: tokens in one block.
        max_step_tokens: most tokens of a sequence that one step computes.
    """

    size: int
    block_size: int
    max_step_tokens: int

    def first_needed_block(self, num_computed_tokens: int) -> int:
        """Return the number of the first block that the next token still reads; all before it may be given back."""
        return max(0, num_computed_tokens - self.size + 1) // self.block_size

    @property
    def max_held_blocks(self) -> int:
        """Most blocks that any step reads or writes, at the worst alignment."""
        num_tokens = self.size - 1 + self.max_step_tokens
        return (num_tokens + self.block_size - 2) // self.block_size + 1
