"""Sharing out the parts of one computation among threads that may come late, or be stopped for a while.

Knows counters. Does not know what is computed. A computation is a row of phases, each of so many independent items; a
phase begins when all items of the one before it are done. Each member of a team walks all phases:

    item = take(member, phase, num_items)
    while item < num_items:
        ...
        item = take_next(member, phase, num_items)
    wait(member, phase, num_items)

A member begins with a range of neighbouring items of its own, since memory that is read in one go comes faster (by up
to a third, for weights that one row is multiplied by), and then helps the others with theirs.

Invariants:
1. An item is taken once. A thread that another process holds up keeps no item waiting but the one in its hands.
2. Any number of members, one included, finishes: a phase waits for its items, never for a member to arrive.
3. What was written before an item was finished can be read after `wait`.

Source: work stealing, Blumofe and Leiserson, Journal of the ACM 46 (1999).
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu_vectors import INT64, emitted

LINE = 8  # 64-bit integers in a cache line
PATIENCE = 2000  # looks at a counter before the core is offered to others


def _element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@emitted
def add_one(_context, counters, _index):
    """Add 1 to an element, in one order with the other threads' additions; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = ir.Constant(INT64, 1)
        return builder.atomic_rmw("add", _element(context, builder, signature, args), one, "acq_rel")

    return types.int64(counters, types.int64), generate


@emitted
def read(_context, counters, _index):
    """Return an element, and see what was written before it was set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_element(context, builder, signature, args), "acquire", 8)

    return types.int64(counters, types.int64), generate


@emitted
def yield_core(_context):
    """Let another thread have the core, if one wants it (POSIX's `sched_yield`)."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@numba.njit
def new_counters(num_phases: int, num_members: int) -> Any:
    """Return counters for one computation: in each phase what was taken of each range, then how much is done."""
    return np.zeros(num_phases * (num_members + 1) * LINE, np.int64)


@numba.njit
def _place(member: Any, phase: int, which: int) -> int:
    return (phase * (member[2] + 1) + which) * LINE


@numba.njit
def take(member: Any, phase: int, num_items: int) -> int:
    """Return an item that nobody has taken, or `num_items` where none is left.

    Args:
        member: the counters, this member's number, and how many there are.
        phase: which one, from 0.
        num_items: of this phase.
    """
    counters, me, num_members = member
    for step in range(num_members):
        whose = (me + step) % num_members
        first, end = whose * num_items // num_members, (whose + 1) * num_items // num_members
        place = _place(member, phase, whose)
        if first + read(counters, place) < end:
            item = first + add_one(counters, place)
            if item < end:
                return item
    return num_items


@numba.njit
def take_next(member: Any, phase: int, num_items: int) -> int:
    """Say that an item is done, and take another."""
    add_one(member[0], _place(member, phase, member[2]))
    return take(member, phase, num_items)


@numba.njit
def wait(member: Any, phase: int, num_items: int) -> None:
    """Return when all items of a phase are done."""
    looks = 0
    while read(member[0], _place(member, phase, member[2])) < num_items:
        looks += 1
        if looks > PATIENCE:
            yield_core()
