"""Sharing out the parts of one computation among threads that may come late, or be stopped for a while.

Knows counters. Does not know what is computed. A computation is a row of phases, each of so many independent items; a
phase begins when all items of the one before it are done. Each worker walks all phases:

    item = take(counters, phase)
    while item < num_items:
        ...
        item = take_next(counters, phase)
    wait(counters, phase, num_items)

Invariants:
1. An item is taken once, by whoever is free: a thread that another process holds up keeps no other item waiting.
2. Any number of workers, one included, finishes: a phase waits for its items, never for a worker to arrive.
3. What was written before an item was finished can be read after `wait`.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu_vectors import INT64, emitted

LINE = 8  # 64-bit integers in a cache line
TAKEN, FINISHED = 0, LINE  # where a phase's two counters are
PHASE = 2 * LINE
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
def new_counters(num_phases: int) -> Any:
    """Return counters for one computation."""
    return np.zeros(num_phases * PHASE, np.int64)


@numba.njit
def take(counters: Any, phase: int) -> int:
    """Return the next item of a phase that nobody has taken; past the last one there is nothing left."""
    return add_one(counters, phase * PHASE + TAKEN)


@numba.njit
def take_next(counters: Any, phase: int) -> int:
    """Say that an item is done, and take another."""
    add_one(counters, phase * PHASE + FINISHED)
    return add_one(counters, phase * PHASE + TAKEN)


@numba.njit
def wait(counters: Any, phase: int, num_items: int) -> None:
    """Return when all items of a phase are done."""
    looks = 0
    while read(counters, phase * PHASE + FINISHED) < num_items:
        looks += 1
        if looks > PATIENCE:
            yield_core()
