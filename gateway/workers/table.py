"""Memory that all workers share: how many requests each has in flight at each instance, and which are to be drained.

Knows cells. Does not know processes, instances or what the counts are used for.

Invariants:
1. One name has one row, in every process; rows are claimed under a lock and never given back.
2. A cell of a count is written by its worker only, save when that worker is gone.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import blake2b

MAX_ROWS = 16384  # names, over the gateway's life; memory is taken only for those used
KEY, DRAINING, FIRST_COUNT = 0, 1, 2
CELL_BYTES = 8


class TableFull(Exception):
    """More names than there are rows."""


def claim(cells: memoryview, width: int, name: str, lock: int) -> int:
    """Return where the row of this name begins, of rows of `width` cells, the first of which is the name's key.

    Raises:
        TableFull: it has none, and no row is free.
    """
    key = int.from_bytes(blake2b(name.encode(), digest_size=CELL_BYTES).digest(), "little", signed=True) or 1
    num_rows = len(cells) // width
    with held(lock):
        for number in range(num_rows):
            start = (key + number) % num_rows * width
            if cells[start + KEY] in {0, key}:
                cells[start + KEY] = key
                return start
    raise TableFull(f"workers share memory for {num_rows} names, and there were more since the start")


class SharedTable:
    """One row for each instance: its key, whether it is drained, a count for each worker."""

    def __init__(self, num_workers: int) -> None:
        """Make the memory; processes that are forked later share it."""
        self.num_workers = num_workers
        self._width = FIRST_COUNT + num_workers
        self._cells = memoryview(mmap.mmap(-1, MAX_ROWS * self._width * CELL_BYTES)).cast("q")
        self._lock = os.memfd_create("gateway-table")
        weakref.finalize(self, os.close, self._lock)

    def row(self, name: str, worker: int) -> "Row":
        """Return the row of this name as seen by a worker, claiming a free one where it has none.

        Raises:
            TableFull: no row is free.
        """
        return Row(self._cells, claim(self._cells, self._width, name, self._lock), self._width, worker, self._lock)

    def forget(self, worker: int) -> None:
        """Set the counts of a worker that is gone to zero."""
        for start in range(0, len(self._cells), self._width):
            self._cells[start + FIRST_COUNT + worker] = 0


@contextmanager
def held(lock: int) -> Iterator[None]:
    """Hold the lock of a file, which the kernel takes from a process that dies; it does not nest."""
    fcntl.lockf(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN)


@dataclass(frozen=True, slots=True)
class Row:
    """One instance, as one worker sees it."""

    cells: memoryview
    start: int
    width: int
    worker: int
    lock: int

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other workers out, for who looks at counts before changing one."""
        return held(self.lock)

    def set(self, count: int) -> None:
        """Say how many requests this worker has in flight there."""
        self.cells[self.start + FIRST_COUNT + self.worker] = count

    def others(self) -> int:
        """Return how many the other workers have."""
        counts = self.cells[self.start + FIRST_COUNT : self.start + self.width]
        return sum(counts) - counts[self.worker]

    @property
    def is_draining(self) -> bool:
        """Whether some worker was told to drain the instance."""
        return bool(self.cells[self.start + DRAINING])

    def drain(self, wanted: bool) -> None:
        """Tell all workers to drain the instance, or to use it again."""
        self.cells[self.start + DRAINING] = wanted
