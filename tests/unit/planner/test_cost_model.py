"""The planner's parts; its steady state beside a simulation of every step."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.models.config import ModelConfig
from scripts.launcher.paths import DEFAULT_MODEL, ROOT
from scripts.planner import collectives
from scripts.planner.devices import PUBLISHED, Device, Link, PlanError, device_fields, find_device
from scripts.planner.kept import Types
from scripts.planner.layouts import Layout, all_layouts, head_shares
from scripts.planner.load import Workload, steady
from scripts.planner.step import StepLoad, StepModel, busiest
from scripts.planner.work import context_read, count_work, touched_experts
from tests.unit.planner.closed_loop import burst, simulate

PLANS = ROOT / "docs" / "plans"
MIXTRAL = ModelConfig.from_dir(PLANS / "mixtral-8x7b")
H200 = PUBLISHED["H200"]
BF16 = Types("bf16", "bf16")
LINK = Link(start_s=5e-6, hop_s=1e-6, bandwidth=1e9)


ONE = Layout(1, 1)


def make_step(layout: Layout = ONE, types: Types = BF16, device: Device = H200) -> StepModel:
    return StepModel(MIXTRAL, device, layout, types)


def test_parameters_are_those_of_the_checkpoint_but_for_norms() -> None:
    with (DEFAULT_MODEL / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    matrices = sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    assert count_work(ModelConfig.from_dir(DEFAULT_MODEL)).num_parameters == matrices


def test_mixtral_has_46_7_billion_parameters_and_128_kib_of_keys_and_values_a_token() -> None:
    assert count_work(MIXTRAL).num_parameters == pytest.approx(46.70e9, rel=1e-3)
    assert make_step().kv_bytes_per_token == 128 * 1024
    assert make_step(types=Types("bf16", "fp32")).kv_bytes_per_token == 4 * MIXTRAL.kv_values_per_token


@pytest.mark.parametrize("num_tokens", [1, 3, 16])
def test_touched_experts_are_the_mean_of_random_choices(num_tokens: int) -> None:
    rng = random.Random(0)
    draws = [len({e for _ in range(num_tokens) for e in rng.sample(range(8), 2)}) for _ in range(5_000)]
    assert touched_experts(num_tokens, 8, 2) == pytest.approx(sum(draws) / len(draws), rel=0.02)


def test_the_busiest_of_random_groups_is_estimated_well() -> None:
    rng = random.Random(0)
    draws = [max(groups.count(g) for g in range(8)) for groups in (rng.choices(range(8), k=512) for _ in range(2000))]
    assert busiest(512 / 8, 7 / 8, 8) == pytest.approx(sum(draws) / len(draws), rel=0.1)
    assert busiest(512, 0.5, 1) == 512


def test_windows_limit_what_is_read() -> None:
    assert context_read(1000, (None, 100)) == 550
    assert context_read(50, (None, 100)) == 50


@pytest.mark.parametrize(
    "collective", [collectives.all_reduce, collectives.all_gather, collectives.all_to_all, collectives.broadcast]
)
def test_a_collective_costs_nothing_alone_and_more_for_more_bytes(collective: Callable[..., float]) -> None:
    assert collective(1e6, 1, LINK) == 0.0
    costs = [collective(num_bytes, 4, LINK) for num_bytes in (0, 1e3, 1e6, 1e9)]
    assert costs == sorted(costs)
    assert costs[0] >= LINK.start_s + LINK.hop_s


def test_an_all_reduce_is_bound_by_latency_when_small_and_by_the_ring_when_large() -> None:
    assert collectives.all_reduce(8, 8, LINK) == pytest.approx(LINK.start_s + LINK.hop_s, rel=0.02)
    assert collectives.all_reduce(1e9, 8, LINK) == pytest.approx(2 * 7 / 8, rel=0.01)


def test_layouts_use_all_devices_and_differ() -> None:
    layouts = list(all_layouts(8))
    assert {layout.replicas * layout.num_ranks for layout in layouts} == {8}
    assert len({layout.name for layout in layouts}) == len(layouts) == 10
    assert [layout.name for layout in layouts][:2] == ["tp8", "tp4 ep2"]
    assert [layout.name for layout in all_layouts(3)] == ["tp3", "ep3", "3 x one"]


@pytest.mark.parametrize(
    ("num_ranks", "queries", "kvs"), [(1, 1, 1), (3, 3 / 8, 3 / 8), (8, 1 / 8, 1 / 8), (16, 1 / 16, 1 / 8)]
)
def test_heads_are_dealt_out_in_groups_until_key_value_heads_are_copied(
    num_ranks: int, queries: float, kvs: float
) -> None:
    assert head_shares(MIXTRAL, num_ranks) == (queries, kvs)


@pytest.mark.parametrize("layout", [Layout(1, 8), Layout(1, 2, 4), Layout(1, 1, 8)])
def test_ranks_share_the_weights_evenly_where_they_divide(layout: Layout) -> None:
    assert make_step(layout).weight_bytes * 8 == pytest.approx(make_step().weight_bytes)


def test_uneven_parts_are_counted_by_the_largest() -> None:
    assert make_step(Layout(1, 1, 3)).weight_bytes > make_step().weight_bytes / 3


def test_tokens_are_sent_to_experts_where_the_engine_does_so_and_never_on_gpus() -> None:
    few, many = StepLoad(1, 512), StepLoad(1, 512, 4096, 2048)
    cpu = replace(H200, is_cpu=True)
    wide, on_gpus, on_cpus = make_step(Layout(1, 8)), make_step(Layout(1, 1, 8)), make_step(Layout(1, 1, 8), device=cpu)
    assert on_cpus.cost(few).exchange == wide.cost(few).exchange == on_gpus.cost(few).exchange
    assert on_cpus.cost(many).exchange < wide.cost(many).exchange == on_gpus.cost(many).exchange


def test_a_decode_step_takes_at_least_what_reading_its_weights_takes() -> None:
    step, load = make_step(), StepLoad(64, 512)
    read = step.weight_bytes - 2 * count_work(MIXTRAL).embedding
    assert step.cost(load).seconds > read / H200.bandwidth
    assert step.cost(StepLoad(1, 512)).experts == pytest.approx(step.cost(load).experts * 2 / 8, rel=0.02)


@pytest.mark.parametrize(
    ("model", "one", "many", "prefill", "seen"),
    [
        ("llama-3-8b", 4.183, 6.571, 241.4, (5380, 574, 7.38)),
        ("mixtral-8x7b", 7.191, 24.23, 445.1, (1791, 1183, 26.45)),
    ],
)
def test_an_h200_is_predicted_within_a_tenth_of_what_was_measured_on_one(
    model: str, one: float, many: float, prefill: float, seen: tuple[float, float, float]
) -> None:
    """Milliseconds and tokens/s of docs/performance.md; Llama's first and third are what constants were set by."""
    step = StepModel(ModelConfig.from_dir(PLANS / model), H200, ONE, BF16)
    loads = [StepLoad(1, 1024), StepLoad(64, 1024), StepLoad(0, 0, 8192, 4096)]
    assert [1e3 * step.cost(load).seconds for load in loads] == pytest.approx([one, many, prefill], rel=0.1)
    rate, ttft, itl = burst(step, Workload(512, 128, max_num_seqs=1024, token_budget=8192), 64)
    assert (rate, 1e3 * ttft, 1e3 * itl) == pytest.approx(seen, rel=0.1)


def test_the_host_is_seen_where_it_cannot_lay_out_the_next_step_meanwhile() -> None:
    load = StepLoad(8, 512)
    alone, slow = make_step(), make_step(device=replace(H200, step_s=1.0))
    assert alone.cost(load).seconds > alone.cost(load).host
    assert slow.cost(load).seconds == slow.cost(load).host
    on_ranks, on_a_cpu = make_step(Layout(1, 2)), make_step(device=replace(H200, is_cpu=True))
    assert on_a_cpu.cost(load).seconds == pytest.approx(alone.cost(load).seconds + alone.cost(load).host)
    assert not on_ranks.cost(load).is_ahead


def test_ranks_make_all_but_the_exchange_cheaper() -> None:
    load = StepLoad(64, 512, 512, 256)
    one, four = make_step().cost(load), make_step(Layout(1, 4)).cost(load)
    assert one.exchange == 0 < four.exchange
    assert four.dense + four.experts + four.attention < 0.3 * (one.dense + one.experts + one.attention)


def test_expert_parallel_ranks_wait_for_the_busiest() -> None:
    one_token = StepLoad(1, 512)
    assert make_step(Layout(1, 1, 8)).cost(one_token).experts == make_step(Layout(1, 8)).cost(one_token).experts * 4


@pytest.mark.parametrize(
    ("prompt", "output", "budget"), [(512, 128, 2048), (128, 64, 512), (64, 256, 512), (4000, 32, 2048)]
)
@pytest.mark.parametrize("in_flight", [1, 4, 64])
def test_the_steady_state_is_that_of_a_simulation_of_every_step(
    prompt: int, output: int, budget: int, in_flight: int
) -> None:
    work = Workload(prompt, output, max_num_seqs=256, token_budget=budget)
    step = make_step(Layout(1, 4))
    rate, ttft, itl = simulate(step, work, in_flight, 4 * in_flight + 20)
    seen = steady(step, work, in_flight, largest_batch=256)
    assert seen.tokens_per_s == pytest.approx(rate, rel=0.05)
    assert seen.itl_s == pytest.approx(itl, rel=0.05)
    assert seen.ttft_s == pytest.approx(ttft, rel=0.25)


def test_requests_above_the_largest_batch_wait_and_littles_law_holds() -> None:
    work = Workload(512, 128, max_num_seqs=256, token_budget=2048)
    full, over = (steady(make_step(), work, in_flight, largest_batch=32) for in_flight in (32, 64))
    assert over.tokens_per_s == full.tokens_per_s
    assert over.ttft_s == pytest.approx(full.ttft_s + over.wait_s)
    assert over.tokens_per_s / work.output * over.e2e_s == pytest.approx(64)


def test_a_device_written_to_a_file_is_read_back(tmp_path: Path) -> None:
    device = replace(H200, name="here", source="measured")
    (tmp_path / "here.json").write_text(json.dumps({"device": device_fields(device)}))
    assert find_device(str(tmp_path / "here.json")) == device


@pytest.mark.parametrize(
    "change", [{"bandwidth": -1}, {"bandwidth": "fast"}, {"compute": {}}, {"colour": "red"}, {"near": 3}]
)
def test_a_file_that_holds_no_device_is_refused_by_its_name(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"device": device_fields(H200) | change}))
    with pytest.raises(PlanError, match=r"x\.json"):
        find_device(str(tmp_path / "x.json"))


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(PlanError, match=r"'H1000'.*H100, H200"):
        find_device("H1000")
