"""Sharing out work: every item once, phases in order, however many members a team has and whoever comes late."""

from typing import Any

import numba
import numpy as np
import pytest

from kernels.cpu_workers import new_counters, take, take_next, wait


@numba.njit
def walk(counters: Any, me: int, num_members: int, sizes: Any, taken: Any, order: Any) -> None:
    """Walk all phases as one member; note who took what, and the phase that each item saw finished before it."""
    member = (counters, me, num_members)
    for phase in range(len(sizes)):
        item = take(member, phase, sizes[phase])
        while item < sizes[phase]:
            taken[phase, item] += 1
            order[phase, item] = me
            item = take_next(member, phase, sizes[phase])
        wait(member, phase, sizes[phase])


@numba.njit(parallel=True)
def walk_together(num_members: int, sizes: Any, taken: Any, order: Any) -> None:
    counters = new_counters(len(sizes), num_members)
    for me in numba.prange(num_members):
        walk(counters, me, num_members, sizes, taken, order)


def note(sizes: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(sizes), max(sizes))
    return np.array(sizes), np.zeros(shape, np.int64), np.full(shape, -1)


@pytest.mark.parametrize("num_members", [1, 2, 3, 5])
def test_every_item_is_taken_once_also_by_more_members_than_threads(num_members: int) -> None:
    sizes, taken, order = note([7, 1, 0, 100])
    for _ in range(20):
        walk_together(num_members, sizes, taken, order)
    for phase, size in enumerate(sizes):
        assert (taken[phase, :size] == 20).all()
        assert not taken[phase, size:].any()


def test_a_member_that_never_comes_keeps_nothing_waiting() -> None:
    sizes, taken, order = note([9, 4])
    walk(new_counters(2, 3), 1, 3, sizes, taken, order)
    assert (taken[0] == 1).all()
    assert (order[0] == 1).all()


def test_a_member_that_comes_when_all_is_done_passes_through() -> None:
    sizes, taken, order = note([9, 4])
    counters = new_counters(2, 2)
    walk(counters, 0, 2, sizes, taken, order)
    walk(counters, 1, 2, sizes, taken, order)
    assert (order[0] == 0).all()
    assert taken.sum() == 13
