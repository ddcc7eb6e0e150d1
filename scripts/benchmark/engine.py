"""`scripts/bench engine`: throughput and latency of the engine alone."""

import statistics
from pathlib import Path

from rich.progress import Progress

from engine.placement import num_gpus
from scripts.benchmark.engine_side import EngineSide
from scripts.benchmark.report import Report
from scripts.benchmark.step_share import StepShare
from scripts.benchmark.workload import BATCH, SHARED_PREFIX, SINGLE


def run(
    model: Path, num_threads: int, repeats: int, progress: Progress, *, device: str = "auto", **options: str
) -> Report:
    """Measure the three standard workloads in turn, `repeats` times each, and what a step costs besides the model.

    `options` are further ones of the engine's.
    """
    said = ", ".join(f"{name} {value}" for name, value in options.items() if value)
    report = Report(
        f"engine alone, {model.name}, {num_threads} threads, device {device}, {said}",
        "prompts of random tokens, greedy, end-of-sequence ignored, a new seed each run",
    )
    task = progress.add_task("engine", total=3 * repeats)
    side = EngineSide(model, num_threads, device=device, **options)
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
    if device == "cpu" or (device == "auto" and not num_gpus()):
        _add_shares(report, StepShare(model, num_threads, **options), range(repeats))
    return report


def _add_shares(report: Report, share: StepShare, seeds: range) -> None:
    """Add what a step on the CPU costs besides the model; on a GPU the two go on beside each other."""
    for seed in seeds:
        total, outside = share.run(BATCH, seed)
        report.add("64 decoding: outside the model, of a step", "%", 100 * outside / total)
