"""What a load test sends, and when.

Knows prompts, traces of lengths and arrival times. Pure: does not know clocks, networks or Locust.
"""

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

PROMPTS = (
    "Once upon a time",
    "In a deep forest there lived an old woodcutter who",
    "The king looked at his three sons and said",
    "Every evening, when the lamps were lit,",
    "Far away, beyond the blue hills,",
    "The little fox asked the owl,",
    "On the morning of the fair",
    "There was once a miller whose daughter",
)
LOWEST_ID, HIGHEST_ID = 32, 224


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to send.

    Attributes:
        at: seconds after the beginning of the test.
        prompt: the text, or the token ids where only a length is known.
        max_tokens: most tokens to generate.
        is_exact: generate exactly that many, past the model's own end.
    """

    at: float
    prompt: str | list[int]
    max_tokens: int
    is_exact: bool = False


def synthetic_arrivals(prompts: Sequence[str], max_tokens: int, rate: float, seed: int = 0) -> Iterator[Arrival]:
    """Yield prompts in turn, for ever.

    Args:
        prompts: the texts.
        max_tokens: most tokens for each.
        rate: requests a second at random (Poisson) times; 0 makes each due at once, so users send back to back.
        seed: draws the same times again.
    """
    rng = random.Random(seed)  # noqa: S311 - load, not secrets
    at = 0.0
    for index in count():
        at += rng.expovariate(rate) if rate > 0 else 0.0
        yield Arrival(at, prompts[index % len(prompts)], max_tokens)


def trace_arrivals(path: Path, length_scale: float = 1.0, time_scale: float = 1.0) -> Iterator[Arrival]:
    """Yield the requests of a trace, their prompts made of random token ids of the right number.

    Args:
        path: Azure's CSV or Mooncake's JSON lines, told apart by the name's ending.
        length_scale: factor on all lengths, for models with a short context.
        time_scale: factor on all times; 0.5 sends twice as fast.
    """
    rows = _azure_rows(path) if path.suffix == ".csv" else _mooncake_rows(path)
    start: float | None = None
    for index, (seconds, num_input, num_output) in enumerate(rows):
        start = seconds if start is None else start
        num_prompt = max(1, round(num_input * length_scale))
        num_new = max(1, round(num_output * length_scale))
        yield Arrival((seconds - start) * time_scale, random_ids(num_prompt, index), num_new, is_exact=True)


def random_ids(length: int, seed: int) -> list[int]:
    """Return token ids that every byte-level vocabulary has."""
    return random.Random(seed).choices(range(LOWEST_ID, HIGHEST_ID), k=length)  # noqa: S311 - load, not secrets


def read_prompts(path: Path) -> list[str]:
    """Return one prompt a line: plain text, or JSON with `prompt`, `text` or MT-bench's `turns`.

    Raises:
        ValueError: the file holds no prompt.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    prompts = [_prompt_of(line) for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _prompt_of(line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    for name in ("prompt", "text"):
        if isinstance(row.get(name), str):
            return row[name]
    return str(row["turns"][0]) if row.get("turns") else line


def _azure_rows(path: Path) -> Iterator[tuple[float, int, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield _azure_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _azure_seconds(text: str) -> float:
    """Return seconds for a time with up to seven decimals, of which Python reads six."""
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _mooncake_rows(path: Path) -> Iterator[tuple[float, int, int]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"])
