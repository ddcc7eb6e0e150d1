"""`scripts/bench device`: what this machine does, as rates that `scripts/plan` takes.

Knows the engine's linear layers, its attention kernel and tiny models, each timed alone. Does not know the models that
are planned.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from rich.progress import Progress
from torch import nn

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.layers.packed_linear import pack_linears
from engine.model_runner import set_threads
from engine.quantization.quantized_linear import make_linear
from engine.quantization.weights import PartWeight
from kernels import paged_attention
from kernels.quantized_linear import Int8Weight
from scripts.benchmark.report import machine
from scripts.benchmark.steps import Clock, clock_for, decode_seconds
from scripts.benchmark.sums import make_link, measure_link
from scripts.make_random_model import Shape, write_model
from scripts.planner.devices import Device

NUM_OUT, NUM_IN = 8192, 2048  # 64 MiB: no cache holds it, and some call in many is left alone by other work
FEW_ROWS, MANY_ROWS = 8, 64
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 16, 4, 64, 16
NUM_SEQUENCES, CONTEXT = 32, 256  # 16 MiB of keys and values
NUM_NEAR = 2  # of these sequences, whose keys and values a cache holds
REPEATS = 40
FEW_LAYERS, MANY_LAYERS = 4, 16
MANY_SEQUENCES = 32
PROMPT = 4
NUM_RANKS = 2
SUMS_A_LAYER, OTHER_EXCHANGES = 2, 3  # the embedding's sum, logits and ids: as `scripts.planner.step` counts them


def measure(num_threads: int, repeats: int, progress: Progress) -> Device:
    """Time every rate and return them as a device: one engine process of so many threads.

    The best of the repeats counts: it is what the device does where nothing else runs.
    """
    set_threads(num_threads)
    clock = clock_for(num_threads)
    task = progress.add_task("device", total=repeats)
    seen: list[_Seen] = []
    for _ in range(repeats):
        seen.append(
            _Seen(
                *_linear_seconds(clock),
                _int8_seconds(clock),
                *_attention_seconds(clock),
                *measure_link(),
                *_step_seconds(num_threads),
                *_rank_step_seconds(num_threads),
            )
        )
        progress.advance(task)
    best = _Seen(*(min(column) for column in zip(*seen, strict=True)))
    num_weights = NUM_IN * NUM_OUT
    layer = _layer_seconds(best.few_layers, best.many_layers)
    reading, computing = best.one_row, best.many_rows * FEW_ROWS / MANY_ROWS
    hidden = (reading + computing - best.few_rows) / min(reading, computing)
    in_engine = max(best.small_sum, (_layer_seconds(best.few_on_ranks, best.many_on_ranks) - layer) / SUMS_A_LAYER)
    link = make_link(in_engine, in_engine + best.large_sum - best.small_sum)
    telling = best.few_on_ranks - best.few_layers - (SUMS_A_LAYER * FEW_LAYERS + OTHER_EXCHANGES) * in_engine
    return Device(
        name=f"{machine()['cpu']}, {num_threads} threads",
        source=f"measured {datetime.now(UTC):%Y-%m-%d}",
        memory=float(psutil.virtual_memory().total),
        bandwidth=4 * num_weights / best.one_row,
        compute={
            "fp32": 2 * MANY_ROWS * num_weights / best.many_rows,
            "int8": 2 * MANY_ROWS * num_weights / best.many_int8_rows,
        },
        attention=4 * NUM_NEAR * CONTEXT * NUM_HEADS * HEAD_DIM / best.near_attention,
        kv_bandwidth=8 * NUM_SEQUENCES * CONTEXT * NUM_KV_HEADS * HEAD_DIM / best.attention,
        is_cpu=True,
        near=link,
        far=link,
        layer_s=layer,
        step_s=max(0.0, best.few_layers - FEW_LAYERS * layer),
        tell_s=max(0.0, telling),
        overlap=min(1.0, max(0.0, hidden)),
        sequence_s=max(0.0, (best.many_sequences - best.few_layers) / (MANY_SEQUENCES - 1)),
    )


class _Seen(NamedTuple):
    """Seconds of everything that is timed."""

    one_row: float
    few_rows: float
    many_rows: float
    many_int8_rows: float
    attention: float
    near_attention: float
    small_sum: float
    large_sum: float
    few_layers: float
    many_layers: float
    many_sequences: float
    few_on_ranks: float
    many_on_ranks: float


@torch.inference_mode()
def _linear_seconds(clock: Clock) -> tuple[float, float, float]:
    """Return what a layer that no cache holds takes for one row, for few and for many."""
    layers = nn.Sequential(nn.Linear(NUM_IN, NUM_OUT, bias=False))
    pack_linears(layers)
    inputs = [torch.randn(rows, NUM_IN) for rows in (1, FEW_ROWS, MANY_ROWS)]
    one, few, many = (_fastest(lambda rows=rows: layers(rows), clock) for rows in inputs)
    return one, few, many


@torch.inference_mode()
def _int8_seconds(clock: Clock) -> float:
    """Return what a layer of 8-bit integers takes for many rows, rounding included."""
    weight = PartWeight(Int8Weight.quantize(torch.randn(NUM_OUT, NUM_IN)), "int8")
    layers = nn.Sequential(make_linear(weight, None, torch.device("cpu"), torch.float32))
    pack_linears(layers)
    inputs = torch.randn(MANY_ROWS, NUM_IN)
    return _fastest(lambda: layers(inputs), clock)


def _attention_seconds(clock: Clock) -> tuple[float, float]:
    """Return what one layer's attention takes for decodes over equal contexts: for all, and for few in a cache."""
    attend = paged_attention.select(torch.device("cpu"))
    num_blocks = NUM_SEQUENCES * CONTEXT // BLOCK_SIZE
    keys, values = torch.randn(2, num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    query = torch.randn(NUM_SEQUENCES, NUM_HEADS, HEAD_DIM)
    tables = torch.randperm(num_blocks, dtype=torch.int32).view(NUM_SEQUENCES, -1)  # scattered, as they come to be
    rows = torch.arange(NUM_SEQUENCES, dtype=torch.int32)
    positions = torch.full((NUM_SEQUENCES,), CONTEXT - 1, dtype=torch.int32)
    everyone, few = (
        _fastest(
            lambda n=n: attend(query[:n], keys, values, tables[:n], rows[:n], positions[:n], HEAD_DIM**-0.5), clock
        )
        for n in (NUM_SEQUENCES, NUM_NEAR)
    )
    return everyone, few


def _step_seconds(num_threads: int) -> tuple[float, float, float]:
    """Return what a decode step of tiny models takes: of few layers, of many, and of few with many sequences."""
    few, crowd = _tiny_steps(FEW_LAYERS, (1, MANY_SEQUENCES), clock_for(num_threads), num_threads=num_threads)
    (many,) = _tiny_steps(MANY_LAYERS, (1,), clock_for(num_threads), num_threads=num_threads)
    return few, many, crowd


def _rank_step_seconds(num_threads: int) -> tuple[float, float]:
    """Return the same of few and of many layers on two ranks, by the wall's clock, which counts their waiting."""
    options = {"num_threads": num_threads, "tensor_parallel": NUM_RANKS}
    (few,), (many,) = (_tiny_steps(layers, (1,), time.perf_counter, **options) for layers in (FEW_LAYERS, MANY_LAYERS))
    return few, many


def _tiny_steps(num_layers: int, num_sequences: tuple[int, ...], clock: Clock, **options: int) -> list[float]:
    shape = Shape(hidden=64, layers=num_layers, heads=2, kv_heads=1, intermediate=128, vocabulary=512)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        config = EngineConfig(model=Path(folder), kv_cache_gib=0.1, **options)  # pyright: ignore[reportArgumentType]
        with closing(EngineCore(config)) as core:
            return [decode_seconds(core, number, PROMPT, clock) for number in num_sequences]


def _layer_seconds(few: float, many: float) -> float:
    """Return what a layer adds to a step, from steps of few layers and of many."""
    return max(0.0, (many - few) / (MANY_LAYERS - FEW_LAYERS))


def _fastest(call: Callable[[], object], clock: Clock) -> float:
    seconds: list[float] = []
    for _ in range(REPEATS + 1):
        started = clock()
        call()
        seconds.append(clock() - started)
    return min(seconds[1:])
