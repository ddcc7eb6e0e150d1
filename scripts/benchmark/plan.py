"""`scripts/bench plan`: what the planner predicts of this machine beside what the engine does on it.

Knows both sides. Does not know how either comes about.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from rich.progress import Progress

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.models.config import ModelConfig
from scripts.benchmark.closed_loop import ClosedLoop, closed_loop
from scripts.benchmark.report import Report
from scripts.benchmark.steps import NUM_STEPS, Clock, clock_for, decode_seconds, prefill_seconds
from scripts.planner.devices import Device
from scripts.planner.kept import checkpoint_types
from scripts.planner.layouts import Layout
from scripts.planner.load import Workload, steady
from scripts.planner.step import StepLoad, StepModel

SEED = 1
MEASURED, PREDICTED = ": measured", ": predicted"


class StepTest(NamedTuple):
    """What single steps are timed with."""

    prompt: int
    num_sequences: Sequence[int]
    clock: Clock


def run(
    config: EngineConfig,
    device: Device,
    lengths: tuple[int, int],
    in_flight: Sequence[int],
    *,
    repeats: int,
    progress: Progress,
) -> Report:
    """Measure single steps and then each number of requests in flight, of `lengths` tokens in and out."""
    report = Report(
        f"{config.model.name} on {device.name}, {config.parallel.num_ranks} rank(s)",
        f"{lengths[0]} tokens in, {lengths[1]} out on average, greedy, fp32; rates {device.source}",
    )
    layout = Layout(1, config.tensor_parallel, config.expert_parallel)
    model = ModelConfig.from_dir(config.model)
    step = StepModel(model, device, layout, checkpoint_types(model, device, "fp32"))
    task = progress.add_task("plan", total=2 * repeats)
    is_alone = config.parallel.num_ranks == 1
    clock = clock_for(config.num_threads) if is_alone else time.perf_counter  # which counts waiting for other ranks
    with closing(EngineCore(config)) as core:
        for _ in range(repeats):
            _steps(report, core, step, StepTest(lengths[0], in_flight, clock))
            progress.advance(task)
    work = Workload(*lengths, config.max_num_seqs, config.max_num_batched_tokens)
    with closed_loop(config, SEED) as clients:
        clients.run(*lengths, 2)  # touches everything once
        for _ in range(repeats):
            _loads(report, clients, step, work, in_flight)
            progress.advance(task)
    for name in [series.name for series in report.series if series.name.endswith(MEASURED)]:
        what = name.removesuffix(MEASURED)
        report.ratios[f"{what}: predicted / measured"] = report.median(what + PREDICTED) / report.median(name)
    return report


def _steps(report: Report, core: EngineCore, step: StepModel, test: StepTest) -> None:
    prompt, numbers, clock = test
    expected = step.cost(StepLoad(0, 0, prompt, prompt / 2)).seconds
    _add(report, "prefill alone", "ms", prefill_seconds(core, prompt, clock), expected)
    for number in numbers:
        expected = step.cost(StepLoad(number, prompt + (number + NUM_STEPS) / 2)).seconds
        _add(report, f"step of {number} decodes", "ms", decode_seconds(core, number, prompt, clock), expected)


def _loads(report: Report, clients: ClosedLoop, step: StepModel, work: Workload, numbers: Sequence[int]) -> None:
    for number in numbers:
        seen = clients.run(work.prompt, work.output, number)
        predicted = steady(step, work, number, work.max_num_seqs)
        _add(report, f"throughput, {number} in flight", "tokens/s", seen.tokens_per_s, predicted.tokens_per_s)
        _add(report, f"TTFT, {number} in flight", "ms", seen.ttft_s, predicted.ttft_s)
        _add(report, f"ITL, {number} in flight", "ms", seen.itl_s, predicted.itl_s)


def _add(report: Report, name: str, unit: str, measured: float, predicted: float) -> None:
    factor = 1000 if unit == "ms" else 1
    report.add(name + MEASURED, unit, factor * measured)
    report.add(name + PREDICTED, unit, factor * predicted)
