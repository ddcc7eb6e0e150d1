"""`scripts/bench plan`: what the planner predicts of this machine beside what the engine does on it.

Knows both sides. Does not know how either comes about.
"""

from collections.abc import Sequence

from rich.progress import Progress

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.models.config import ModelConfig
from scripts.benchmark.closed_loop import closed_loop
from scripts.benchmark.report import Report
from scripts.benchmark.steps import NUM_STEPS, decode_seconds, prefill_seconds
from scripts.planner.devices import Device
from scripts.planner.layouts import Layout
from scripts.planner.load import Workload, steady
from scripts.planner.step import StepLoad, StepModel, Types

FP32 = Types("fp32", "fp32")
SEED = 1


def run(
    config: EngineConfig, device: Device, lengths: tuple[int, int], in_flight: Sequence[int], progress: Progress
) -> Report:
    """Measure single steps and then each number of requests in flight, of `lengths` tokens in and out."""
    prompt, output = lengths
    report = Report(
        f"{config.model.name} on {device.name}, {config.parallel.num_ranks} rank(s)",
        f"{prompt} tokens in, {output} out on average, greedy, fp32; rates {device.source}",
    )
    layout = Layout(1, config.tensor_parallel, config.expert_parallel)
    step = StepModel(ModelConfig.from_dir(config.model), device, layout, FP32)
    task = progress.add_task("plan", total=2 * len(in_flight))
    core = EngineCore(config)
    load = StepLoad(0, 0, prompt, prompt / 2)
    _add(report, "prefill alone", "ms", prefill_seconds(core, prompt), step.cost(load).seconds)
    for number in in_flight:
        load = StepLoad(number, prompt + (number + NUM_STEPS) / 2)
        _add(report, f"step of {number} decodes", "ms", decode_seconds(core, number, prompt), step.cost(load).seconds)
        progress.advance(task)
    del core
    work = Workload(prompt, output, config.max_num_seqs, config.max_num_batched_tokens)
    with closed_loop(config, SEED) as clients:
        clients.run(prompt, output, 2)  # touches everything once
        for number in in_flight:
            seen, predicted = clients.run(prompt, output, number), steady(step, work, number, work.max_num_seqs)
            name = f"{number} in flight"
            _add(report, f"throughput, {name}", "tokens/s", seen.tokens_per_s, predicted.tokens_per_s)
            _add(report, f"TTFT, {name}", "ms", seen.ttft_s, predicted.ttft_s)
            _add(report, f"ITL, {name}", "ms", seen.itl_s, predicted.itl_s)
            progress.advance(task)
    return report


def _add(report: Report, name: str, unit: str, measured: float, predicted: float) -> None:
    factor = 1000 if unit == "ms" else 1
    report.add(f"{name}: measured", unit, factor * measured)
    report.add(f"{name}: predicted", unit, factor * predicted)
    report.ratios[f"{name}: predicted / measured"] = predicted / measured
