"""Where the time of requests went, by how many were in flight and by whether they streamed.

Knows rows of a journal. Does not know how they are shown.
"""

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.observe.ledger import STAGES, durations

TOTAL = "total"
LEVELS = ((1, "1"), (7, "2-7"), (31, "8-31"), (63, "32-63"))
HIGHEST_LEVEL = "64+"


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the journal."""

    tenant: str
    outcome: str
    concurrent: int
    messages: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_answer: int | None
    ledger: dict[str, int]


@dataclass(slots=True)
class Group:
    """Requests that are summed up together; times in ns."""

    level: str
    streamed: bool
    ttft: list[int] = field(default_factory=list)
    stages: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in (*STAGES[:-1], TOTAL)})

    @property
    def count(self) -> int:
        """Requests with a whole ledger."""
        return len(self.stages[TOTAL])


def read_rows(path: Path, since_ns: int = 0, tenant: str | None = None) -> list[Row]:
    """Return the requests of a journal, oldest first.

    Raises:
        sqlite3.Error: the file is no journal.
    """
    facts = ("tenant", "outcome", "concurrent", "messages", "prompt_tokens", "completion_tokens", "first_answer")
    query = f"SELECT {', '.join((*facts, *STAGES))} FROM requests WHERE gateway_in >= ?"  # noqa: S608 - constants
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        found = connection.execute(query + " ORDER BY gateway_in", (since_ns,)).fetchall()
    finally:
        connection.close()
    rows = [Row(*row[: len(facts)], ledger=_known(row[len(facts) :])) for row in found]
    return [row for row in rows if tenant is None or row.tenant == tenant]


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Return the groups that have requests, lower levels first; requests without a whole ledger are left out."""
    groups: dict[tuple[int, bool], Group] = {}
    for row in rows:
        spent = durations(row.ledger)
        if spent is None:
            continue
        rank, level = _level_of(row.concurrent)
        streamed = (row.messages or 0) > 1
        group = groups.setdefault((rank, streamed), Group(level, streamed))
        for stage, duration in spent.items():
            group.stages[stage].append(duration)
        group.stages[TOTAL].append(row.ledger["gateway_out"] - row.ledger["gateway_in"])
        if row.first_answer is not None:
            group.ttft.append(row.first_answer - row.ledger["gateway_in"])
    return [groups[key] for key in sorted(groups)]


def quantile(values: Sequence[int], share: float) -> int:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _known(marks: Sequence[int | None]) -> dict[str, int]:
    return {stage: mark for stage, mark in zip(STAGES, marks, strict=True) if mark is not None}


def _level_of(concurrent: int) -> tuple[int, str]:
    for rank, (highest, name) in enumerate(LEVELS):
        if concurrent <= highest:
            return rank, name
    return len(LEVELS), HIGHEST_LEVEL
