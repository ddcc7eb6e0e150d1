"""Levels of token buckets that all workers share.

Knows places and a lock. Does not know tenants or what is counted.

Invariant: a level is read and written under the lock, so that nothing taken is lost. That nobody else takes between a
look and a take is the business of who asks (`Row.exclusive`).
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Iterator

from gateway.safety.bucket import Bucket
from gateway.workers.table import CELL_BYTES, claim, held

MAX_LEVELS = 2**18  # limits of tenants, over the gateway's life
LEVEL, END = 1, 3  # a row's cells: its name's key, the level, when it was known: 0 if nobody has used it


class SharedLevels:
    """Memory for the level of each named bucket."""

    def __init__(self) -> None:
        """Make the memory; processes that are forked later share it. It is taken only for rows that are used."""
        memory = memoryview(mmap.mmap(-1, MAX_LEVELS * END * CELL_BYTES))
        self._keys, self._cells = memory.cast("q"), memory.cast("d")
        self._lock = os.memfd_create("gateway-levels")
        weakref.finalize(self, os.close, self._lock)

    def bucket(self, name: str, capacity: float, rate: float, now: float) -> "SharedBucket":
        """Return the bucket of this name, full where no worker has used it yet.

        Raises:
            TableFull: it has no row, and none is free.
        """
        start = claim(self._keys, END, name, self._lock)
        return SharedBucket(capacity, rate, now, self._cells[start + LEVEL : start + END], self._lock)


class SharedBucket(Bucket):
    """A bucket whose level is in shared memory; `now` is of a clock that all processes share."""

    __slots__ = ("_cells", "_lock")

    def __init__(self, capacity: float, rate: float, now: float, cells: "memoryview[float]", lock: int) -> None:
        """Begin full, or where others have left it."""
        super().__init__(capacity, rate, now)
        self._cells = cells
        self._lock = lock
        self.is_fresh = not cells[1]
        with self._shared():
            pass

    def wait(self, amount: float, now: float) -> float:
        """Return in how many seconds `amount` can be taken."""
        with self._shared():
            return super().wait(amount, now)

    def level_at(self, now: float) -> float:
        """Return the level."""
        with self._shared():
            return super().level_at(now)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`."""
        with self._shared():
            super().take(amount, now)

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        with held(self._lock):
            if self._cells[1]:
                self.level, self.at = self._cells
            yield
            self._cells[0], self._cells[1] = self.level, self.at
