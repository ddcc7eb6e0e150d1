"""What arrives when: read from a trace, or made up with heavy-tailed lengths.

Knows lengths and times. Does not know instances or policies.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from scripts.simulation import trace


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when in seconds, how long in tokens, and what its prompt shares with others, piece by piece."""

    at: float
    prompt_tokens: int
    output_tokens: int
    pieces: tuple[int, ...] = ()


def read_trace(path: Path, limit: int) -> list[Arrival]:
    """Return the first requests of a trace: `.csv` as Azure's, `.jsonl` as Mooncake's.

    Raises:
        ValueError: it cannot be read.
    """
    return [Arrival(r.arrived, r.num_prompt, r.num_output, r.hash_ids) for r in trace.read_trace(path, limit)]


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
