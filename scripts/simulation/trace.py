"""Traces of requests: when each came, how long its prompt and its answer were, and which prefix it shared.

Knows two file layouts and how to make requests up. Does not know schedulers or costs.

Layouts: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens (Azure's LLM inference traces), and JSON lines
with `timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one for each 512 tokens of the prompt
(Mooncake, arXiv 2407.00079): equal ids mean equal tokens. Where they are absent nothing is shared.
"""

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

HASH_TOKENS = 512
OWN_TOKENS = 1 << 40  # ids from here on are nobody else's
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(slots=True, frozen=True)
class TraceRequest:
    """One request; `arrived` in seconds from the trace's start, lengths in tokens."""

    arrived: float
    num_prompt: int
    num_output: int
    hash_ids: tuple[int, ...] = ()
    tenant: str = ""

    def prompt(self, number: int) -> list[int]:
        """Return made-up token ids; those behind the last hash are the own ones of request `number`."""
        ids: list[int] = []
        for hash_id in self.hash_ids:
            ids.extend(range(hash_id * HASH_TOKENS, (hash_id + 1) * HASH_TOKENS))
        missing = max(0, self.num_prompt - len(ids))
        first = OWN_TOKENS + (number << 24)
        return ids[: self.num_prompt] + list(range(first, first + missing))


def read_trace(path: Path, limit: int) -> list[TraceRequest]:
    """Read the first `limit` requests of a file, in the order of their arrivals, counted from the first one.

    Raises:
        ValueError: the file cannot be read, or a request in it is laid out otherwise; it is named.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            read, rows = (_read_json_line, file) if path.suffix == ".jsonl" else (_read_csv_row, _csv_rows(file))
            requests = [_read_row(read, row, number) for number, row in enumerate(islice(rows, limit), 1)]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not requests:
        raise ValueError(f"{path} holds no requests")
    start = min(request.arrived for request in requests)
    requests = [replace(request, arrived=request.arrived - start) for request in requests]
    return sorted(requests, key=lambda request: request.arrived)


def make_trace(num_requests: int, per_second: float, seed: int) -> list[TraceRequest]:
    """Make requests up: Poisson arrivals, log-normal lengths of a chat (median 400 tokens in, 150 out)."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    now, requests = 0.0, []
    for _ in range(num_requests):
        now += rng.expovariate(per_second)
        num_prompt = min(4096, max(1, round(rng.lognormvariate(6.0, 0.9))))
        num_output = min(1024, max(1, round(rng.lognormvariate(5.0, 0.8))))
        requests.append(TraceRequest(now, num_prompt, num_output))
    return requests


def give_tenants(requests: list[TraceRequest], num_tenants: int, seed: int) -> list[TraceRequest]:
    """Give each request a tenant at random; tenant k sends in proportion to 1 / k: the first floods the others."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    names = [f"tenant {k}" for k in range(1, num_tenants + 1)]
    shares = [1 / k for k in range(1, num_tenants + 1)]
    chosen = rng.choices(names, shares, k=len(requests))
    return [replace(request, tenant=tenant) for request, tenant in zip(requests, chosen, strict=True)]


def _csv_rows(file: Iterable[str]) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(file)
    has = rows.fieldnames or ()
    if missing := [name for name in COLUMNS if name not in has]:
        raise ValueError(f"there is no column {', '.join(missing)}, only {', '.join(has) or 'none'}")
    yield from rows


def _read_row(read: Callable[[Any], TraceRequest], row: Any, number: int) -> TraceRequest:
    """Read one row with `read`, and say which it was if that fails."""
    try:
        request = read(row)
        if request.num_prompt < 1:
            raise ValueError(f"a prompt has at least 1 token, not {request.num_prompt}")
    except KeyError as error:
        raise ValueError(f"request {number} has no {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"request {number} cannot be read: {error}") from error
    return request


def _read_json_line(line: str) -> TraceRequest:
    value = json.loads(line)
    shared = tuple(value.get("hash_ids", ())) if isinstance(value, dict) else ()
    return TraceRequest(value["timestamp"] / 1000, value["input_length"], max(1, value["output_length"]), shared)


def _read_csv_row(row: dict[str, str]) -> TraceRequest:
    arrived = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()  # microseconds; the trace has a digit more
    return TraceRequest(arrived, int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))
