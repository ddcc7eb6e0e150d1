"""The journal: records of requests, metrics now and then and what tenants have left, in an SQLite file.

Knows tables, limits and one writer thread. Does not know what the records are about. The event loop only puts into a
queue; the file is in WAL mode, so that a crash loses at most what was not yet committed and readers never wait.

Invariants:
1. At most `max_rows` rows a table and none older than `max_age_s`, after each pruning.
2. More than `MAX_WAITING` items are not kept waiting for a slow disk: they are counted as dropped instead, as are those
   that cannot be written, of which the log tells once in `LOG_SECONDS`.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.log import log
from gateway.observe.ledger import STAGES
from gateway.safety.budgets import LevelRow

if TYPE_CHECKING:
    from gateway.observe.config import JournalConfig
    from gateway.observe.record import Record

MAX_WAITING = 20_000
MAX_BATCH = 1_000
PRUNE_SECONDS = 5.0
BUSY_SECONDS = 10.0
LOG_SECONDS = 10.0  # between two lines that say that nothing can be written
FACTS = (
    "key", "tenant", "method", "instance", "outcome", "attempts", "concurrent", "messages", "prompt_tokens",
    "completion_tokens", "cached_tokens", "first_answer", "flags", "request_id",
)  # fmt: skip
TEXTS = {"key", "tenant", "method", "instance", "outcome", "flags", "request_id"}
COLUMNS = (*FACTS, *STAGES)


def _described(column: str) -> str:
    return f"{column} {'TEXT' if column in TEXTS else 'INTEGER'}"


SCHEMA = f"""
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, {", ".join(map(_described, COLUMNS))});
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (gateway_in);
CREATE TABLE IF NOT EXISTS metrics (id INTEGER PRIMARY KEY, at INTEGER, name TEXT, labels TEXT, value REAL);
CREATE INDEX IF NOT EXISTS metrics_by_time ON metrics (at);
CREATE TABLE IF NOT EXISTS levels (name TEXT PRIMARY KEY, level REAL, at INTEGER);
"""
INSERT = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
INSERT_METRIC = "INSERT INTO metrics (at, name, labels, value) VALUES (?, ?, ?, ?)"
PRUNE = (("requests", "gateway_in"), ("metrics", "at"))
MetricRow = tuple[int, str, str, float]  # at in ns, name, labels, value
SAVE_LEVEL = "INSERT OR REPLACE INTO levels (name, level, at) VALUES (?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The metrics of one moment, and what tenants had left."""

    metrics: list[MetricRow]
    levels: list[LevelRow]


class Journal:
    """Writes on a thread of its own until `close`."""

    def __init__(self, config: JournalConfig, drop: Callable[[int], object] = lambda _: None) -> None:
        """Open or make the file; `drop` counts items that are not kept, from any thread.

        Raises:
            OSError: it cannot be used.
        """
        self._drop = drop
        self._told_at = -LOG_SECONDS
        self._config = config
        self._queue: queue.SimpleQueue[Record | Snapshot | None] = queue.SimpleQueue()
        try:
            connection = open_journal(config)
            rows = connection.execute("SELECT name, level, at FROM levels")
            self.saved_levels: dict[str, tuple[float, int]] = {name: (level, at) for name, level, at in rows}
        except sqlite3.Error as error:
            raise OSError(f"the journal {config.path} cannot be used: {error}") from error
        self._thread = threading.Thread(target=self._run, args=(connection,), name="journal", daemon=True)
        self._thread.start()

    def write(self, item: Record | Snapshot) -> None:
        """Keep a record or a snapshot; returns at once."""
        if self._queue.qsize() >= MAX_WAITING:
            self._drop(1)
        else:
            self._queue.put(item)

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self, connection: sqlite3.Connection) -> None:
        pruned_at = 0.0
        closing = False
        while not closing:
            batch = self._take()
            closing = None in batch
            self._write(connection, [item for item in batch if item is not None])
            if time.monotonic() - pruned_at > PRUNE_SECONDS or closing:
                pruned_at = time.monotonic()
                with self._telling():
                    prune(connection, self._config, time.time_ns())
        connection.close()

    def _write(self, connection: sqlite3.Connection, items: list[Record | Snapshot]) -> None:
        lost = len(items)
        with self._telling():
            with connection:
                _insert(connection, items)
            lost = 0
        if lost:
            self._drop(lost)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Log what fails, not too often."""
        try:
            yield
        except sqlite3.Error as error:
            if time.monotonic() - self._told_at >= LOG_SECONDS:
                self._told_at = time.monotonic()
                log("journal_failed", error=repr(error), path=self._config.path)

    def _take(self) -> list[Record | Snapshot | None]:
        batch = [self._queue.get()]
        while len(batch) < MAX_BATCH and batch[-1] is not None:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch


def open_journal(config: JournalConfig) -> sqlite3.Connection:
    """Return a connection to the file, which has its tables, for one thread at a time.

    Raises:
        sqlite3.Error: it cannot be opened or is something else.
    """
    connection = sqlite3.connect(config.path, timeout=BUSY_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(SCHEMA)
    known = {row[1] for row in connection.execute("PRAGMA table_info(requests)")}
    for name in COLUMNS:
        if name not in known:  # the file is of an earlier version
            connection.execute(f"ALTER TABLE requests ADD COLUMN {_described(name)}")
    return connection


def prune(connection: sqlite3.Connection, config: JournalConfig, now_ns: int) -> None:
    """Delete what is too old or too much."""
    oldest = now_ns - round(1e9 * config.max_age_s)
    with connection:
        for table, column in PRUNE:
            connection.execute(f"DELETE FROM {table} WHERE {column} < ?", (oldest,))  # noqa: S608 - constants
            query = f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?"  # noqa: S608 - constants
            connection.execute(query, (config.max_rows,))


def _insert(connection: sqlite3.Connection, items: Iterable[Record | Snapshot]) -> None:
    records: list[tuple[object, ...]] = []
    for item in items:
        if isinstance(item, Snapshot):
            connection.executemany(INSERT_METRIC, item.metrics)
            connection.executemany(SAVE_LEVEL, item.levels)
        else:
            facts = (getattr(item, name) for name in FACTS)
            records.append((*facts, *(item.ledger.get(stage) for stage in STAGES)))
    connection.executemany(INSERT, records)
