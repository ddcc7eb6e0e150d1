"""What is forgotten first, and which blocks of a prefix are found again."""

import pytest

from engine.block_pool import BlockPool
from engine.errors import OutOfBlocks
from engine.prefix_cache import find_prefix


def hold_chain(pool: BlockPool, names: list[bytes]) -> list[int]:
    """Take blocks named as a chain, each the child of the one before."""
    blocks = [pool.allocate() for _ in names]
    for block, name, parent in zip(blocks, names, [b"", *names], strict=False):
        pool.remember(block, name, parent)
    return blocks


def remembered(pool: BlockPool, names: list[bytes]) -> list[bytes]:
    pool.check()
    return [name for name in names if pool.find(name) is not None]


def test_a_leaf_is_forgotten_before_its_parent_however_long_ago_the_parent_was_released() -> None:
    pool = BlockPool(3)
    for block in hold_chain(pool, [b"root", b"middle", b"leaf"]):
        pool.release(block)
    names = [b"root", b"middle", b"leaf"]
    for left in (2, 1, 0):
        pool.allocate()
        assert remembered(pool, names) == names[:left]


def test_of_two_leaves_the_one_released_longest_ago_is_forgotten_and_its_parent_only_then() -> None:
    pool = BlockPool(4)
    old, parent = hold_chain(pool, [b"old"])[0], hold_chain(pool, [b"parent"])[0]
    child, new = pool.allocate(), hold_chain(pool, [b"new"])[0]
    pool.remember(child, b"child", b"parent")
    for block in (parent, child, old, new):
        pool.release(block)
    forgotten = []
    for _ in range(4):
        before = remembered(pool, [b"old", b"parent", b"child", b"new"])
        pool.allocate()
        forgotten += [name for name in before if pool.find(name) is None]
    assert forgotten == [b"child", b"parent", b"old", b"new"]
    with pytest.raises(OutOfBlocks, match="all 4 KV-cache blocks are in use"):
        pool.allocate()


def test_a_parent_whose_child_is_in_use_is_forgotten_only_for_want_of_leaves() -> None:
    pool = BlockPool(3)
    parent, child = hold_chain(pool, [b"parent", b"child"])
    pool.release(parent)
    leaf = hold_chain(pool, [b"leaf"])[0]
    pool.release(leaf)
    pool.allocate()
    assert remembered(pool, [b"parent", b"child", b"leaf"]) == [b"parent", b"child"]
    pool.allocate()
    assert remembered(pool, [b"parent", b"child"]) == [b"child"]
    pool.release(child)
    pool.check()


def test_a_cached_leaf_that_gains_a_child_is_no_leaf_any_more() -> None:
    pool = BlockPool(3)
    parent, leaf = hold_chain(pool, [b"parent"])[0], hold_chain(pool, [b"leaf"])[0]
    pool.release(parent)
    pool.release(leaf)
    child = pool.allocate()
    pool.remember(child, b"child", b"parent")
    pool.allocate()
    assert remembered(pool, [b"parent", b"child", b"leaf"]) == [b"parent", b"child"]


def test_an_acquired_block_keeps_its_content_and_ages_anew() -> None:
    pool = BlockPool(2)
    first, second = hold_chain(pool, [b"first"])[0], hold_chain(pool, [b"second"])[0]
    pool.release(first)
    pool.release(second)
    pool.acquire(first)
    pool.release(first)
    pool.allocate()
    assert remembered(pool, [b"first", b"second"]) == [b"first"]


def test_a_hot_prefix_does_not_pile_up_stale_entries() -> None:
    pool = BlockPool(2)
    block = hold_chain(pool, [b"hot"])[0]
    pool.release(block)
    for _ in range(1000):
        pool.acquire(block)
        pool.release(block)
    assert len(pool._cached._leaves) < 100
    pool.check()


@pytest.mark.parametrize(
    ("known", "window_blocks", "first", "hits"),
    [
        ("", None, 0, []),
        ("abcd", None, 0, [0, 1, 2, 3]),
        ("abd", None, 0, [0, 1]),
        ("bcd", None, 0, []),
        ("abcd", 2, 2, [2, 3]),
        ("cd", 2, 2, [2, 3]),
        ("bc", 2, 1, [1, 2]),
        ("ad", 2, 0, [0]),
        ("abd", 2, 0, [0, 1]),
        ("d", 2, 0, []),
    ],
)
def test_a_prefix_needs_every_block_that_is_still_read(
    known: str, window_blocks: int | None, first: int, hits: list[int]
) -> None:
    names = [bytes([letter]) for letter in b"abcd"]
    table = {name: index for index, name in enumerate(names) if chr(name[0]) in known}

    def first_needed(num_blocks: int) -> int:
        return 0 if window_blocks is None else max(0, num_blocks - window_blocks)

    assert find_prefix(names, table.get, first_needed) == (first, hits)
