"""The block pool's books: free + cached + used is always everything."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.block_pool import BlockPool
from engine.errors import OutOfBlocks


def test_released_block_with_known_content_is_found_again() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.remember(block, b"x")
    pool.release(block)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (1, 1, 0)
    assert pool.find(b"x") == block


def test_eviction_takes_the_content_released_longest_ago() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.remember(first, b"1")
    pool.remember(second, b"2")
    pool.release(second)
    pool.release(first)
    assert pool.allocate() == second
    assert pool.find(b"2") is None
    assert pool.find(b"1") == first


def test_acquired_cached_block_is_not_evicted() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.remember(block, b"x")
    pool.release(block)
    pool.acquire(block)
    with pytest.raises(OutOfBlocks, match="all 1 KV-cache blocks"):
        pool.allocate()


def test_second_block_with_the_same_content_stays_unnamed() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.remember(first, b"x")
    pool.remember(second, b"x")
    assert pool.find(b"x") == first
    pool.release(second)
    assert pool.num_free == 1


class PoolMachine(RuleBasedStateMachine):
    """Random use by an honest caller, who releases just what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(5)
        self.held: list[int] = []

    @rule()
    def allocate(self) -> None:
        if self.pool.num_available == 0:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate()
        else:
            block = self.pool.allocate()
            assert block not in self.held
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), content=st.integers(0, 6))
    def remember(self, data: st.DataObject, content: int) -> None:
        self.pool.remember(data.draw(st.sampled_from(self.held)), bytes([content]))

    @rule(content=st.integers(0, 6))
    def share(self, content: int) -> None:
        block = self.pool.find(bytes([content]))
        if block is not None:
            self.pool.acquire(block)
            self.held.append(block)

    @invariant()
    def books_balance(self) -> None:
        self.pool.check()
        assert self.pool.num_used == len(set(self.held))
        assert all(self.pool.ref_counts[block] == self.held.count(block) for block in range(5))


TestPoolMachine = PoolMachine.TestCase
