"""`scripts/bench shapes`: steps of known model shapes against the ceilings of the device, and requests beside a peer.

Weights are random and made on the device. Ceilings are measured in the same run: the bandwidth of a copy and the rate
of a matrix product. The peer is transformers' continuous batching, on the same shape, device and type.
"""

import gc
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.dummy_steps import dummy_step
from engine.model_runner import ModelRunner
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.step_plan import StepPlan
from scripts.benchmark.random_model import Traffic, load_random, write_sizes
from scripts.benchmark.report import Progress, Report
from scripts.benchmark.workload import Workload
from scripts.kernel_cases.ceilings import Ceilings, make_timer, measure_ceilings

WARM_UP_STEPS = 5
HOST_BOUNDS: dict[str, Any] = {"num_blocks": 64, "max_batch_tokens": 512}  # of the peer: else it fills a host
REQUESTS = Workload(num_requests=64, num_shared=0, num_own=512, num_output=128)
GREEDY = SamplingParams()


@dataclass(slots=True, frozen=True)
class Sizes:
    """How much is measured: contexts and prompts in tokens, and requests for the engine and its peer."""

    batches: tuple[int, ...] = (1, 64)
    context: int = 1024
    prompt: int = 8192
    steps: int = 50
    requests: Workload = REQUESTS


@dataclass(slots=True, frozen=True)
class Least:
    """What the device does at best, and what the model asks of it."""

    ceilings: Ceilings
    traffic: Traffic


def run(
    shape: str, folder: Path, progress: Progress, *, device: str, dtype: str, sizes: Sizes, with_peer: bool = True
) -> Report:
    """Measure one shape; `folder` is empty and gets its sizes."""
    write_sizes(folder, shape, dtype)
    task = progress.add_task(shape, total=2 + len(sizes.batches) + with_peer)
    core = EngineCore(_config(folder, device, sizes), load_random)
    where = core.runner.placement
    report = Report(f"{shape}, random weights, {where.dtype} on {_name(where.device)}", _held_equal(sizes))
    ceilings = measure_ceilings(where.device, make_timer(where.device), 1.0)
    report.add("copy", "GB/s", ceilings.bytes_per_second / 1e9)
    report.add("matrix product", "TFLOP/s", ceilings.flops_per_second / 1e12)
    least = Least(ceilings, Traffic(core.model_config, where.dtype.itemsize))
    for batch in sizes.batches:
        _add_decode(report, core.runner, batch, least, sizes)
        progress.advance(task)
    _add_prefill(report, core.runner, least, sizes)
    progress.advance(task)
    prompts = sizes.requests.prompts(core.model_config.vocab_size, 1)
    _add_requests(report, core, prompts, sizes.requests)
    progress.advance(task)
    del core
    if with_peer:
        seconds = peer_seconds(folder, where.device, where.dtype, prompts, sizes.requests.num_output)
        report.add("transformers, requests", "tokens/s", sizes.requests.total_output / seconds)
        ours, theirs = report.median("engine, requests"), report.median("transformers, requests")
        report.ratios["tokens/s, engine over transformers' continuous batching"] = ours / theirs
        progress.advance(task)
    return report


def peer_seconds(
    folder: Path, device: torch.device, dtype: torch.dtype, prompts: list[list[int]], num_output: int
) -> float:
    """Return how long transformers' continuous batching takes for the prompts, warmed up by one of them."""
    gc.collect()  # the engine before
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with device:
        config = transformers.AutoConfig.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    options = transformers.GenerationConfig(max_new_tokens=num_output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    bounds = None if device.type == "cuda" else transformers.ContinuousBatchingConfig(**HOST_BOUNDS)
    given = {"generation_config": options, "continuous_batching_config": bounds}
    model.generate_batch(inputs=prompts[:1], **given)
    started = time.perf_counter()
    results = model.generate_batch(inputs=prompts, **given)
    seconds = time.perf_counter() - started
    made = sum(len(result.generated_tokens) for result in results.values())
    if made != len(prompts) * num_output:
        raise RuntimeError(f"transformers made {made} of {len(prompts) * num_output} tokens")
    return seconds


def _config(folder: Path, device: str, sizes: Sizes) -> EngineConfig:
    most = max(sizes.batches)
    longest = max(sizes.context + 1, sizes.prompt, sizes.requests.num_own + sizes.requests.num_output)
    return EngineConfig(
        model=folder, device=device, max_num_seqs=most, max_num_batched_tokens=sizes.prompt, max_model_len=longest + 1
    )


def _held_equal(sizes: Sizes) -> str:
    requests = sizes.requests
    return (
        f"decode at {sizes.context} tokens of context, prefill of {sizes.prompt}; {requests.num_requests} requests at "
        f"once ({requests.num_own} in, {requests.num_output} out), greedy, end-of-sequence ignored"
    )


def _add_decode(report: Report, runner: ModelRunner, batch: int, least: Least, sizes: Sizes) -> None:
    plan = dummy_step(batch, 1, runner.block_size, num_cached=sizes.context - 1, params=GREEDY)
    _scatter(plan, runner)
    seconds = _seconds_a_step(runner, plan, sizes.steps)
    floor = least.ceilings.floor(least.traffic.decode_bytes(batch, sizes.context), 0)
    report.add(f"decode, batch {batch}", "ms/step", 1000 * seconds)
    report.add(f"decode, batch {batch}, of the bandwidth floor", "%", 100 * floor / seconds)


def _add_prefill(report: Report, runner: ModelRunner, least: Least, sizes: Sizes) -> None:
    plan = dummy_step(1, sizes.prompt, runner.block_size, params=GREEDY)
    _scatter(plan, runner)
    seconds = _seconds_a_step(runner, plan, max(2, sizes.steps // 10))
    floor = least.ceilings.floor(0, least.traffic.prefill_flops(sizes.prompt))
    report.add(f"prefill of {sizes.prompt}", "ms", 1000 * seconds)
    report.add(f"prefill of {sizes.prompt}, of the matrix rate", "%", 100 * floor / seconds)


def _scatter(plan: StepPlan, runner: ModelRunner) -> None:
    """Give each sequence blocks of its own, so that no cache serves them all, and tokens, that go to all experts."""
    free, rng = iter(range(runner.num_blocks)), random.Random(0)  # noqa: S311 - not for secrets
    for item in plan.scheduled:
        sequence = item.sequence
        sequence.block_table = [next(free) for _ in sequence.block_table]
        sequence.token_ids[:] = rng.choices(range(runner.vocab_size), k=len(sequence.token_ids))


def _seconds_a_step(runner: ModelRunner, plan: StepPlan, steps: int) -> float:
    """Return the time of a step where each is launched before the last one's tokens are read, as the engine does."""
    for _ in range(WARM_UP_STEPS):
        runner.run(plan)
    started = time.perf_counter()
    in_flight = runner.launch(plan)
    for _ in range(steps - 1):
        before, in_flight = in_flight, runner.launch(plan)
        before.read()
    in_flight.read()
    return (time.perf_counter() - started) / steps


def _add_requests(report: Report, core: EngineCore, prompts: list[list[int]], workload: Workload) -> None:
    params = SamplingParams(max_tokens=workload.num_output, ignore_eos=True)
    started = time.monotonic()
    for number, prompt in enumerate(prompts):
        core.add(number, prompt, params, started)
    finals: list[RequestOutput] = []
    while core.has_work:
        finals += [output for output in core.step() if output.finish_reason is not None]
    seconds = time.monotonic() - started
    firsts = [output.timings.first_token - started for output in finals]
    gaps = [
        (output.timings.finished - output.timings.first_token) / max(1, workload.num_output - 1) for output in finals
    ]
    report.add("engine, requests", "tokens/s", workload.total_output / seconds)
    report.add("engine, TTFT p50", "ms", 1000 * statistics.median(firsts))
    report.add("engine, ITL p50", "ms", 1000 * statistics.median(gaps))
    assert core.compiles is not None
    report.add("engine, kernels compiled on requests' time", "", float(core.compiles.num_compiled))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
