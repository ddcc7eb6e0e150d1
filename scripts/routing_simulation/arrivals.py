"""What arrives when: read from a trace, or made up with heavy-tailed lengths.

Knows two trace formats by their files' endings. Does not know instances or policies.
"""

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PIECE_TOKENS = 512  # of one `hash_ids` entry in a Mooncake trace


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when in seconds, how long in tokens, and what its prompt shares with others, piece by piece."""

    at: float
    prompt_tokens: int
    output_tokens: int
    pieces: tuple[int, ...] = ()


def read_trace(path: Path, limit: int) -> list[Arrival]:
    """Return the first requests of a trace: `.csv` as Azure's, `.jsonl` as Mooncake's."""
    rows = _mooncake(path) if path.suffix == ".jsonl" else _azure(path)
    return [arrival for arrival, _ in zip(rows, range(limit), strict=False)]


def _azure(path: Path) -> Iterator[Arrival]:
    with path.open(encoding="utf-8") as file:
        begin = None
        for row in csv.DictReader(file):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            begin = at if begin is None else begin
            yield Arrival(at - begin, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _mooncake(path: Path) -> Iterator[Arrival]:
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            pieces = tuple(row["hash_ids"])
            yield Arrival(row["timestamp"] / 1000, row["input_length"], row["output_length"], pieces)


def heavy_tailed(count: int, rate: float, seed: int) -> list[Arrival]:
    """Return Poisson arrivals whose lengths follow Pareto laws: most are short, a few are very long."""
    rng = random.Random(seed)  # noqa: S311 - made-up load
    now, made = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        prompt = min(16_000, int(150 * rng.paretovariate(1.1)))
        made.append(Arrival(now, prompt, min(2_000, int(40 * rng.paretovariate(1.2)))))
    return made


def at_rate(arrivals: list[Arrival], rate: float) -> list[Arrival]:
    """Return the same arrivals, faster or slower, at this mean rate in requests a second."""
    factor = len(arrivals) / rate / max(arrivals[-1].at, 1e-9)
    return [Arrival(a.at * factor, a.prompt_tokens, a.output_tokens, a.pieces) for a in arrivals]
