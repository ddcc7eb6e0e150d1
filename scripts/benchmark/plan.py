"""`scripts/bench plan`: what the planner predicts of this machine beside what the engine does on it.

Knows both sides. Does not know how either comes about.
"""

from collections.abc import Sequence

from rich.progress import Progress

from engine.config import EngineConfig
from engine.models.config import ModelConfig
from scripts.benchmark.closed_loop import closed_loop
from scripts.benchmark.report import Report
from scripts.planner.devices import Device
from scripts.planner.layouts import Layout
from scripts.planner.load import Workload, steady
from scripts.planner.step import StepModel, Types

FP32 = Types("fp32", "fp32")
SEED = 1


def run(
    config: EngineConfig, device: Device, lengths: tuple[int, int], in_flight: Sequence[int], progress: Progress
) -> Report:
    """Measure each number of requests in flight, of `lengths` tokens in and out, beside what is predicted for it."""
    prompt, output = lengths
    report = Report(
        f"{config.model.name} on {device.name}, {config.parallel.num_ranks} rank(s)",
        f"{prompt} tokens in, {output} out on average, greedy, fp32; rates {device.source}",
    )
    work = Workload(prompt, output, config.max_num_seqs, config.max_num_batched_tokens)
    layout = Layout(1, config.tensor_parallel, config.expert_parallel)
    step = StepModel(ModelConfig.from_dir(config.model), device, layout, FP32)
    task = progress.add_task("plan", total=len(in_flight))
    with closed_loop(config, SEED) as clients:
        clients.run(prompt, output, 2)  # touches everything once
        for number in in_flight:
            seen, predicted = clients.run(prompt, output, number), steady(step, work, number, work.max_num_seqs)
            for name, unit, measured, expected in (
                ("throughput", "tokens/s", seen.tokens_per_s, predicted.tokens_per_s),
                ("TTFT", "ms", 1000 * seen.ttft_s, 1000 * predicted.ttft_s),
                ("ITL", "ms", 1000 * seen.itl_s, 1000 * predicted.itl_s),
            ):
                title = f"{name}, {number} in flight"
                report.add(f"{title}: measured", unit, measured)
                report.add(f"{title}: predicted", unit, expected)
                report.ratios[f"{title}: predicted / measured"] = expected / measured
            progress.advance(task)
    return report
