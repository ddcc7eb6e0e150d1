"""A step that begins before the last one's tokens are known changes when work is done, never what is said."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelError
from engine.guided_options import Guided
from engine.offline import Completion, generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling_params import SchedulingParams
from tests.conftest import TinyModel
from tests.gpu.fake_cuda import FakeCuda, fake_cuda

SIZES: dict[str, Any] = {"block_size": 4, "num_threads": 1, "max_num_batched_tokens": 24, "max_num_seqs": 6}
ROOMY: dict[str, Any] = SIZES | {"num_blocks": 400}
TIGHT: dict[str, Any] = SIZES | {"num_blocks": 34}
PLAIN: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 2},
    {"logprobs": True, "top_logprobs": 2},
    {"stop": ("q", "Az", "<2"), "min_tokens": 5},
    {"max_tokens": 1},
    {"max_tokens": 2, "temperature": 1.0, "seed": 5},
    {"ignore_eos": False, "stop_token_ids": tuple(range(3, 60)), "min_tokens": 3},
    {"n": 3, "temperature": 1.0, "seed": 6, "logprobs": True},
    {"logit_bias": ((17, 4.0), (18, -100.0)), "bad_words": ("a",)},
]
DEPENDENT: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"prompt_logprobs": True, "logprobs": True},
    {"bad_words": ("bc",), "temperature": 2.0, "seed": 9},
    {"guided": Guided("regex", "[a-d]{3}(xy|z)*!"), "temperature": 0.8, "seed": 7},
    {"speculation": 3},
]


def requests(options: list[dict[str, Any]]) -> tuple[list[list[int]], list[SamplingParams]]:
    params = [SamplingParams(**({"max_tokens": 20, "ignore_eos": True} | each)) for each in options]
    prefix = [(7 * i) % 250 + 5 for i in range(21)]
    return [prefix[: 21 if i % 2 else 5] + [60 + i] * (i % 5) for i in range(len(options))], params


def run(core: EngineCore, options: list[dict[str, Any]]) -> list[Completion]:
    completions = generate(core, *requests(options))
    core.scheduler.check()
    assert core.read_stats().kv_usage == 0
    assert core.stats.num_finished == len(options)
    return completions


def make_core(model: TinyModel, **options: Any) -> EngineCore:
    return EngineCore(EngineConfig(model=model.path, **options))


@pytest.mark.parametrize("sizes", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("options", [PLAIN, PLAIN + DEPENDENT], ids=["plain", "mixed"])
def test_every_request_says_the_same_and_ends_for_the_same_reason(
    tiny_llama: TinyModel, sizes: dict[str, Any], options: list[dict[str, Any]]
) -> None:
    plain = run(make_core(tiny_llama, overlap="off", **sizes), options)
    core = make_core(tiny_llama, overlap="on", **sizes)
    ahead = run(core, options)
    assert [(c.token_ids, c.finish_reason, c.text) for c in ahead] == [
        (c.token_ids, c.finish_reason, c.text) for c in plain
    ]
    for ours, theirs in zip(ahead, plain, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.prompt_log_probs == pytest.approx(theirs.prompt_log_probs, abs=1e-4)
    assert (core.stats.num_preemptions > 0) == (sizes is TIGHT)


def test_a_step_is_launched_before_the_last_ones_tokens_are_read(
    tiny_llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core(tiny_llama, overlap="on", **ROOMY)
    events: list[str] = []
    launch = core.runner.launch

    def noted(plan: Any, before: Any = None) -> Any:
        events.append("launch")
        return launch(plan, before)

    land = core._land
    monkeypatch.setattr(core.runner, "launch", noted)
    monkeypatch.setattr(core, "_land", lambda: (events.append("read"), land())[1] if core._flights else land())
    core.add(1, [5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True), 0.0)
    while core.has_work:
        core.step()
    assert events == ["launch", *["launch", "read"] * 3, "read"]


def test_a_token_that_certainly_ends_its_sequence_is_not_followed_by_a_step(tiny_llama: TinyModel) -> None:
    core = make_core(tiny_llama, overlap="on", **ROOMY)
    core.add(1, [5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True), 0.0)
    while core.has_work:
        core.step()
    assert core.stats.num_steps == 4


def test_an_abort_while_a_step_is_in_flight_ends_with_what_has_arrived(tiny_llama: TinyModel) -> None:
    core = make_core(tiny_llama, overlap="on", **ROOMY)
    for request_id in (1, 2):
        core.add(request_id, [5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True), 0.0)
    core.step()
    core.step()
    [output] = core.abort(1)
    assert (output.finish_reason, output.num_completion_tokens) == (FinishReason.CANCELLED, 1)
    outputs: list[RequestOutput] = []
    while core.has_work:
        outputs += core.step()
        core.scheduler.check()
    assert {output.request_id for output in outputs} == {2}
    assert outputs[-1].num_completion_tokens == 9
    assert core.read_stats().kv_usage == 0


def test_a_deadline_ends_with_the_tokens_that_have_arrived(tiny_llama: TinyModel, monkeypatch: Any) -> None:
    core = make_core(tiny_llama, overlap="on", **ROOMY)
    now = [100.0]
    monkeypatch.setattr("engine.core.time.monotonic", lambda: now[0])
    options = SchedulingParams(deadline_ms=5000)
    core.add(1, [5, 6, 7], SamplingParams(max_tokens=50, ignore_eos=True), 100.0, scheduling=options)
    outputs = [output for _ in range(4) for output in core.step()]
    now[0] = 106.0
    while core.has_work:
        outputs += core.step()
    assert outputs[-1].finish_reason is FinishReason.DEADLINE
    assert sum(len(output.token_ids) for output in outputs) == outputs[-1].num_completion_tokens == 3


def test_random_arrivals_and_aborts_leave_every_request_one_answer(tiny_llama: TinyModel) -> None:
    rng = random.Random(3)
    core = make_core(tiny_llama, overlap="on", **TIGHT)
    prompts, params = requests((PLAIN + DEPENDENT) * 3)
    alone = make_core(tiny_llama, overlap="off", **ROOMY)
    todo, finals = list(range(len(prompts))), dict.fromkeys(range(len(prompts)), 0)
    told: dict[tuple[int, int], list[int]] = {}
    aborted: set[int] = set()
    while todo or core.has_work:
        if todo and rng.random() < 0.4:
            number = todo.pop()
            core.add(number, prompts[number], params[number], 0.0)
        outputs = core.step()
        if rng.random() < 0.05:
            aborted.add(victim := rng.randrange(len(prompts)))
            outputs += core.abort(victim)
        core.scheduler.check()
        for output in outputs:
            told.setdefault((output.request_id, output.sequence_index), []).extend(output.token_ids)
            finals[output.request_id] += output.ends_request
    assert set(finals.values()) == {1}
    for number in sorted(set(finals) - aborted):
        for index, completion in enumerate(generate(alone, [prompts[number]], [params[number]])):
            assert told[number, index] == completion.token_ids


def test_a_step_too_large_for_the_memory_is_computed_in_parts(
    tiny_llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(make_core(tiny_llama, overlap="off", **ROOMY), PLAIN)
    core = make_core(tiny_llama, overlap="on", **ROOMY)
    model = core.runner.model

    def small(batch: Any, cache: Any) -> torch.Tensor:
        if len(batch.input_ids) > 4 and len(batch.block_tables) > 1:
            raise MemoryError
        return model(batch, cache)

    monkeypatch.setattr(core.runner, "model", small)
    assert [c.token_ids for c in run(core, PLAIN)] == [c.token_ids for c in plain]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with fake_cuda(monkeypatch) as device:
        yield device


@pytest.fixture(scope="module")
def on_host(tiny_llama: TinyModel) -> list[Completion]:
    return run(make_core(tiny_llama, overlap="off", device="cpu", **ROOMY), PLAIN)


def test_on_a_device_tokens_go_from_step_to_step_without_the_host(
    tiny_llama: TinyModel, on_host: list[Completion], fake: FakeCuda
) -> None:
    core = make_core(tiny_llama, **ROOMY)
    fake.waits.clear()
    fake.reads = 0
    completions = run(core, PLAIN)
    assert [c.token_ids for c in completions] == [c.token_ids for c in on_host]
    assert not fake.waits
    assert fake.reads == core.stats.num_steps


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ModelError, match="overlap must be one of auto, on, off, got 'yes'"):
        replace(EngineConfig(), overlap="yes")
