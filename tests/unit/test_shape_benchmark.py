"""The benchmark of known shapes counts what a step must read and compute, and runs without a checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from engine.models.config import ModelConfig
from scripts.benchmark.gpu_engines import measure_engines
from scripts.benchmark.random_model import Traffic, write_sizes
from scripts.benchmark.shapes import Sizes
from scripts.benchmark.workload import Workload

pytestmark = pytest.mark.numeric

SMALL = Sizes(
    batches=(1, 3),
    context=20,
    prompt=32,
    steps=3,
    requests=Workload(num_requests=3, num_shared=0, num_own=9, num_output=4),
)


@pytest.mark.parametrize(("shape", "billions"), [("llama-3-8b", 7.50), ("mixtral-8x7b", 46.57)])
def test_a_large_batch_reads_every_weight_but_the_embedding(shape: str, billions: float, tmp_path: Path) -> None:
    write_sizes(tmp_path, shape, "bfloat16")
    traffic = Traffic(ModelConfig.from_dir(tmp_path), 2)
    assert traffic.decode_bytes(1000, 0) / 2e9 == pytest.approx(billions, rel=0.002)


def test_one_token_of_mixtral_reads_two_experts_a_layer_and_its_context(tmp_path: Path) -> None:
    write_sizes(tmp_path, "mixtral-8x7b", "bfloat16")
    traffic = Traffic(ModelConfig.from_dir(tmp_path), 2)
    assert traffic.decode_bytes(1, 0) / 2e9 == pytest.approx(12.75, rel=0.002)
    assert traffic.decode_bytes(1, 1024) - traffic.decode_bytes(1, 0) == 1024 * 2 * 32 * 8 * 128 * 2


def test_a_prompt_costs_two_operations_a_weight_and_its_attention(tmp_path: Path) -> None:
    write_sizes(tmp_path, "llama-3-8b", "bfloat16")
    traffic = Traffic(ModelConfig.from_dir(tmp_path), 2)
    products = 2 * 6.98e9 * 8192
    attention = 4 * 32 * 4096 * 8192**2 / 2
    assert traffic.prefill_flops(8192) == pytest.approx(products + attention, rel=0.002)


def test_shapes_are_measured_one_after_the_other_on_the_cpu_while_time_is_left() -> None:
    times = iter([True, True, False])
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    unknown, tiny, late = measure_engines(["unknown", "tiny", "tiny"], lambda: next(times), SMALL, **given)
    assert (unknown.report, unknown.is_failure, unknown.problem) == (None, True, "KeyError: 'unknown'")
    assert (late.report, late.is_failure, late.problem) == (None, False, "no time was left")
    report = tiny.report
    assert report is not None
    assert "| decode, batch 3 |" in report.markdown()
    for name in (
        "decode, batch 1",
        "decode, batch 3",
        "prefill of 32",
        "engine, requests",
        "engine, ITL p50",
        "transformers, requests",
    ):
        assert report.median(name) > 0
    for name in ("decode, batch 3, of the bandwidth floor", "prefill of 32, of the matrix rate"):
        assert 0 < report.median(name) < 100
