"""`scripts/bench engine`: throughput and latency of the engine alone."""

import statistics
from pathlib import Path

from rich.progress import Progress

from scripts.benchmark.engine_side import EngineSide
from scripts.benchmark.report import Report
from scripts.benchmark.step_share import StepShare
from scripts.benchmark.workload import BATCH, SHARED_PREFIX, SINGLE


def run(model: Path, num_threads: int, repeats: int, progress: Progress) -> Report:
    """Measure the three standard workloads in turn, `repeats` times each, and what a step costs besides the model."""
    report = Report(
        f"engine alone, {model.name}, fp32, {num_threads} threads",
        "prompts of random tokens, greedy, end-of-sequence ignored, a new seed each run",
    )
    task = progress.add_task("engine", total=4 * repeats)
    side = EngineSide(model, num_threads)
    try:
        side.run(SINGLE, seed=-1)
        for seed in range(repeats):
            batch = side.run(BATCH, seed)
            report.add("64 x (128 in, 64 out)", "tokens/s", BATCH.total_output / batch.seconds)
            report.add("64 x (128 in, 64 out), TTFT p50", "s", statistics.median(batch.ttfts))
            progress.advance(task)
            single = side.run(SINGLE, seed)
            per_token = (single.seconds - single.ttfts[0]) / (SINGLE.num_output - 1)
            report.add("1 x (128 in, 64 out)", "ms/token", 1000 * per_token)
            report.add("1 x (128 in, 64 out), TTFT", "ms", 1000 * single.ttfts[0])
            progress.advance(task)
            shared = side.run(SHARED_PREFIX, seed)
            report.add("64 x (512 shared + 16 in, 16 out)", "tokens/s", SHARED_PREFIX.total_output / shared.seconds)
            progress.advance(task)
    finally:
        side.close()
    share = StepShare(model, num_threads)
    for seed in range(repeats):
        total, outside = share.run(BATCH, seed)
        report.add("64 decoding: outside the model, of a step", "%", 100 * outside / total)
        progress.advance(task)
    return report
