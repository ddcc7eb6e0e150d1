"""`scripts/bench sampler`: what choosing the tokens of one step costs.

Knows the sampler and random logits. Does not know models or engines.
"""

import time
from typing import Any

import torch
from rich.progress import Progress

from engine.model_runner import set_threads
from engine.sampler import sample
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from scripts.benchmark.report import Report

NUM_ROWS, VOCAB_SIZE, NUM_TOKENS = 64, 49152, 256
WARM_UP_STEPS, STEPS = 3, 20
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.8": {"temperature": 0.8},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "repetition penalty, greedy": {"repetition_penalty": 1.1},
    "log-probabilities, greedy": {"logprobs": True},
}


def run(num_threads: int, repeats: int, progress: Progress) -> Report:
    """Measure each way of sampling, `repeats` times `STEPS` steps."""
    set_threads(num_threads)
    report = Report(
        f"sampling alone, {NUM_ROWS} rows of {VOCAB_SIZE} logits, {num_threads} threads",
        f"normal logits with a deviation of 2; {NUM_TOKENS} tokens a sequence; the fastest of {STEPS} steps",
    )
    logits = torch.randn(NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 2
    task = progress.add_task("sampler", total=repeats * len(WAYS))
    for _ in range(repeats):
        for name, options in WAYS.items():
            report.add(name, "ms/step", 1000 * _fastest_step(logits, SamplingParams(**options)))
            progress.advance(task)
    return report


def _fastest_step(logits: torch.Tensor, params: SamplingParams) -> float:
    sequences = [
        Sequence(row, list(range(row, row + NUM_TOKENS)), NUM_TOKENS // 2, params, 2**20, frozenset({0}), seed=row)
        for row in range(NUM_ROWS)
    ]
    seconds: list[float] = []
    for _ in range(WARM_UP_STEPS + STEPS):
        fresh = logits.clone()
        started = time.perf_counter()
        sample(fresh, sequences)
        seconds.append(time.perf_counter() - started)
    return min(seconds[WARM_UP_STEPS:])
