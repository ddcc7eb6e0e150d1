"""n sequences of one request: each is the request with seed + i, they share the prompt's blocks, and all end."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidRequest
from engine.offline import generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import MAX_SEED, SamplingParams
from engine.scheduling_params import SchedulingParams
from tests.conftest import TinyModel

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


@pytest.fixture(scope="module")
def shared_core(tiny_llama: TinyModel) -> EngineCore:
    return EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=200, num_threads=1))


@pytest.fixture
def core(shared_core: EngineCore) -> Iterator[EngineCore]:
    yield shared_core
    shared_core.scheduler.check()
    assert not shared_core.has_work
    assert shared_core.scheduler.kv.usage == 0


def drain(core: EngineCore) -> list[RequestOutput]:
    outputs: list[RequestOutput] = []
    while core.has_work:
        outputs += core.step()
        core.scheduler.check()
    return outputs


@pytest.mark.parametrize("seed", [7, MAX_SEED])
def test_sequence_i_is_the_request_with_its_seed_plus_i(core: EngineCore, seed: int) -> None:
    options: dict[str, Any] = {"temperature": 1.4, "max_tokens": 20, "ignore_eos": True, "logprobs": True}
    together = generate(core, [PROMPT], [SamplingParams(seed=seed, n=4, **options)])
    for index, completion in enumerate(together):
        alone = generate(core, [PROMPT], [SamplingParams(seed=(seed + index) % (MAX_SEED + 1), **options)])[0]
        assert completion.token_ids == alone.token_ids
        assert completion.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
    assert len({tuple(c.token_ids) for c in together}) == 4


def test_greedy_sequences_are_all_the_one(core: EngineCore, tiny_llama: TinyModel) -> None:
    expected = tiny_llama.greedy(PROMPT, 9)
    completions = generate(core, [PROMPT], [SamplingParams(max_tokens=9, n=3, ignore_eos=True)])
    assert [c.token_ids for c in completions] == [expected] * 3


def test_the_prompts_full_blocks_are_shared_and_only_their_rest_is_computed_again(core: EngineCore) -> None:
    core.add(1, list(range(50, 60)), SamplingParams(max_tokens=6, n=5, ignore_eos=True, seed=1), 0.0)
    core.step()
    plan = core.scheduler.schedule(0.0)
    assert [item.num_tokens for item in plan.scheduled] == [1, 2, 2, 2, 2]
    assert core.scheduler.kv.pool.num_used == 2 + 5  # two full blocks of 4 tokens, and a last one each
    core.abort(1)


def test_each_sequence_ends_once_and_the_request_with_the_last_of_them(core: EngineCore) -> None:
    params = SamplingParams(n=3, max_tokens=30, temperature=1.0, seed=3, stop_token_ids=tuple(range(120)))
    core.add(1, PROMPT, params, 0.0)
    finals = [output for output in drain(core) if output.finish_reason is not None]
    assert sorted(output.sequence_index for output in finals) == [0, 1, 2]
    assert [output.ends_request for output in finals] == [False, False, True]
    assert len({output.num_completion_tokens for output in finals}) > 1
    assert core.read_stats().num_running == 0


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_abort_ends_all_sequences_wherever_they_are(core: EngineCore, num_steps: int) -> None:
    core.add(1, PROMPT, SamplingParams(n=3, max_tokens=30, ignore_eos=True), 0.0)
    for _ in range(num_steps):
        core.step()
    outputs = core.abort(1)
    assert [o.finish_reason for o in outputs] == [FinishReason.CANCELLED] * 3
    assert [o.ends_request for o in outputs] == [False, False, True]
    assert core.abort(1) == []


def test_a_deadline_ends_all_sequences_also_those_that_still_wait_for_the_prompt(core: EngineCore) -> None:
    soon = SchedulingParams(deadline_ms=1)
    core.add(1, PROMPT, SamplingParams(n=3, max_tokens=30, ignore_eos=True), 0.0, scheduling=soon)
    outputs = drain(core)
    assert [o.finish_reason for o in outputs] == [FinishReason.DEADLINE] * 3
    assert [o.ends_request for o in outputs] == [False, False, True]


def test_an_error_of_one_sequence_ends_the_request_with_one_error(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = core.runner.model

    def poisoned(batch: Any, cache: Any) -> torch.Tensor:
        logits = model(batch, cache)
        for row, sequence in enumerate(batch.sampling):
            if sequence.index == 1 and sequence.num_output_tokens == 2:
                logits[row, 0] = torch.nan
        return logits

    monkeypatch.setattr(core.runner, "model", poisoned)
    core.add(1, PROMPT, SamplingParams(n=3, max_tokens=30, ignore_eos=True), 0.0)
    outputs = drain(core)
    assert [o.finish_reason for o in outputs if o.finish_reason is not None] == [FinishReason.ERROR]
    assert outputs[-1].ends_request


def test_sequences_survive_preemption(tiny_llama: TinyModel, core: EngineCore) -> None:
    params = [SamplingParams(n=3, max_tokens=24, temperature=1.3, seed=9, ignore_eos=True)]
    tight = EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=18, num_threads=1))
    expected, squeezed = (generate(c, [PROMPT], params) for c in (core, tight))
    assert tight.read_stats().num_preemptions > 0
    assert [c.token_ids for c in squeezed] == [c.token_ids for c in expected]
    tight.scheduler.check()


def test_without_a_prefix_cache_each_sequence_computes_the_prompt_and_says_the_same(
    tiny_llama: TinyModel, core: EngineCore
) -> None:
    params = [SamplingParams(n=3, max_tokens=12, temperature=1.3, seed=9, ignore_eos=True)]
    config = EngineConfig(model=tiny_llama.path, num_blocks=40, num_threads=1, enable_prefix_caching=False)
    assert [c.token_ids for c in generate(EngineCore(config), [PROMPT], params)] == [
        c.token_ids for c in generate(core, [PROMPT], params)
    ]


def test_several_sequences_cannot_be_resumed(core: EngineCore) -> None:
    with pytest.raises(InvalidRequest, match="resume_token_ids can continue one sequence only, and n is 2"):
        core.add(1, PROMPT, SamplingParams(n=2), 0.0, (5,))
