"""The core's promises: one final answer each, aborts at once, seeds that travel, stop strings that never leak."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidRequest, PromptTooLong, QueueFull
from engine.offline import generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling_params import SchedulingParams
from engine.sequence import Sequence
from engine.sequence_output import stop_token_chars
from engine.text.tokenizer import Tokenizer
from tests.conftest import TinyModel
from tests.tokenizer_folders import make_byte_fallback

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def core(tiny_llama: TinyModel) -> EngineCore:
    return EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=200, num_threads=1, max_waiting=4))


@pytest.fixture(scope="module")
def demo_core() -> EngineCore:
    return EngineCore(EngineConfig(num_blocks=200, num_threads=1))


def test_an_abort_frees_the_blocks_before_the_next_step(core: EngineCore) -> None:
    core.add(1, [5, 6, 7], SamplingParams(max_tokens=50, ignore_eos=True), 0.0)
    core.step()
    assert core.read_stats().kv_usage > 0
    [output] = core.abort(1)
    assert output.finish_reason is FinishReason.CANCELLED
    assert output.num_completion_tokens == 1
    assert core.read_stats().kv_usage == 0
    assert not core.has_work
    assert core.abort(1) == []


def test_a_waiting_request_can_be_aborted(core: EngineCore) -> None:
    core.add(1, [5], SamplingParams(), 0.0)
    [output] = core.abort(1)
    assert (output.finish_reason, output.num_completion_tokens) == (FinishReason.CANCELLED, 0)
    assert not core.has_work


def test_the_queue_is_bounded(core: EngineCore) -> None:
    for request_id in range(4):
        core.add(request_id, [5], SamplingParams(max_tokens=1), 0.0)
    with pytest.raises(QueueFull, match="4 requests are waiting and the limit is 4"):
        core.add(9, [5], SamplingParams(max_tokens=1), 0.0)
    ended = [o.request_id for _ in range(3) if core.has_work for o in core.step() if o.finish_reason]
    assert ended == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ([], SamplingParams(), InvalidRequest, "the prompt is empty"),
        ([1, 300], SamplingParams(), InvalidRequest, "token id 300; the vocabulary has ids 0 to 299"),
        ([-1], SamplingParams(), InvalidRequest, "token id -1"),
        ([1], SamplingParams(stop_token_ids=(301,)), InvalidRequest, "stop_token_ids holds the token id 301"),
        ([1] * 200, SamplingParams(max_tokens=57), PromptTooLong, "200 tokens; with max_tokens 57 .*limit of 256"),
        ([1] * 256, SamplingParams(), PromptTooLong, "256 tokens; with one token of output .* limit of 256"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(
    core: EngineCore, prompt: list[int], params: SamplingParams, error: type[InvalidRequest], message: str
) -> None:
    with pytest.raises(error, match=message):
        core.add(1, prompt, params, 0.0)
    assert not core.has_work


def test_without_max_tokens_a_request_runs_to_the_models_limit(core: EngineCore) -> None:
    completion = generate(core, [[5] * 250], [SamplingParams(ignore_eos=True)])[0]
    assert (len(completion.token_ids), completion.finish_reason) == (6, FinishReason.LENGTH)


def test_the_end_of_sequence_token_ends_unless_ignored(core: EngineCore, tiny_llama: TinyModel) -> None:
    free = tiny_llama.greedy([5, 6, 7], 20)
    stop = free[6]
    first = free.index(stop)
    ended = generate(core, [[5, 6, 7]], [SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=(stop,))])[0]
    assert ended.token_ids == free[: first + 1]
    assert ended.finish_reason is FinishReason.STOP
    late = generate(
        core,
        [[5, 6, 7]],
        [SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=(stop,), min_tokens=first + 1)],
    )[0]
    assert len(late.token_ids) > first + 1
    assert stop not in late.token_ids[: first + 1]


def test_the_same_seed_draws_the_same_alone_in_a_batch_and_under_preemption(
    tiny_llama: TinyModel, core: EngineCore
) -> None:
    params = [SamplingParams(max_tokens=40, temperature=1.5, top_p=0.95, seed=s, ignore_eos=True) for s in range(4)]
    prompts = [[5 + i] * (9 + i) for i in range(4)]
    alone = [generate(core, [p], [o])[0].token_ids for p, o in zip(prompts, params, strict=True)]
    tight = EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=30, num_threads=1, max_num_seqs=4))
    together = [c.token_ids for c in generate(tight, prompts, params)]
    assert tight.read_stats().num_preemptions > 0
    assert together == alone
    assert len({tuple(t) for t in alone}) == 4


def test_a_seeded_request_goes_on_the_same_from_its_own_tokens(core: EngineCore) -> None:
    def options(max_tokens: int) -> list[SamplingParams]:
        return [SamplingParams(max_tokens=max_tokens, temperature=1.2, seed=3, ignore_eos=True)]

    whole = generate(core, [[9, 8, 7]], options(30))[0].token_ids
    rest = generate(core, [[9, 8, 7, *whole[:11]]], options(19))[0].token_ids
    assert whole[11:] == rest


def test_log_probs_are_transformers(core: EngineCore, tiny_llama: TinyModel) -> None:
    prompt = [5, 6, 7]
    completion = generate(core, [prompt], [SamplingParams(max_tokens=10, logprobs=True, ignore_eos=True)])[0]
    with torch.no_grad():
        logits = tiny_llama.oracle(torch.tensor([prompt + completion.token_ids])).logits[0]
    expected = logits[2:-1].log_softmax(-1).gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_stop_strings_cut_the_text_just_before_them(demo_core: EngineCore, length: int) -> None:
    prompt = demo_core.tokenizer.encode("Once upon a time")
    free = generate(demo_core, [prompt], [SamplingParams(max_tokens=48, ignore_eos=True)])[0]
    for start in range(5, 60, 11):
        stop = free.text[start : start + length]
        params = SamplingParams(max_tokens=48, stop=(stop,), ignore_eos=True)
        completion = generate(demo_core, [prompt], [params])[0]
        assert completion.text == free.text[: free.text.index(stop)]
        assert completion.finish_reason is FinishReason.STOP


def test_a_stop_string_that_never_comes_changes_nothing(demo_core: EngineCore) -> None:
    prompt = demo_core.tokenizer.encode("Once upon a time")
    params = [
        SamplingParams(max_tokens=32, stop=stop, ignore_eos=True) for stop in ((), ("\u2603", "Once upon a tim3"))
    ]
    free, watched = (generate(demo_core, [prompt], [p])[0] for p in params)
    assert (watched.text, watched.token_ids) == (free.text, free.token_ids)


def test_a_stop_token_that_completes_a_character_takes_it_along(
    tiny_llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, num_blocks=16, num_threads=1))
    monkeypatch.setattr(core, "tokenizer", Tokenizer.from_dir(make_byte_fallback(tmp_path)))
    ids = [token for byte in "😀".encode() if (token := core.tokenizer.backend.token_to_id(f"<0x{byte:02X}>"))]
    assert len(ids) == 4
    assert stop_token_chars(core.tokenizer, Sequence(1, [5, *ids], 1, SamplingParams(), 100, frozenset())) == 1


def continued(core: EngineCore, prompt: list[int], params: SamplingParams, resume_ids: list[int]) -> RequestOutput:
    """Run one request that goes on behind `resume_ids`; return its outputs as one."""
    [joined] = core.add(1, prompt, params, 0.0, tuple(resume_ids)) or [RequestOutput(1)]
    while core.has_work:
        for output in core.step():
            output.token_ids[:0] = joined.token_ids
            joined = output
    return joined


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "top_k": 20, "seed": 4},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "temperature": 0.8, "seed": 9},
        {"min_tokens": 30, "stop_token_ids": tuple(range(150))},
        {"stop": ("q", "Az"), "min_tokens": 24, "temperature": 1.5, "seed": 2},
    ],
)
def test_a_request_moved_to_another_engine_mid_way_goes_on_as_if_nothing_had_happened(
    core: EngineCore, tiny_llama: TinyModel, options: dict[str, Any]
) -> None:
    other = EngineCore(EngineConfig(model=tiny_llama.path, block_size=8, num_blocks=50, num_threads=1))
    params, prompt = SamplingParams(max_tokens=40, ignore_eos=True, **options), [9, 8, 7]
    whole = generate(core, [prompt], [params])[0]
    for num_delivered in (1, 11, len(whole.token_ids) - 1, len(whole.token_ids)):
        rest = continued(other, prompt, params, whole.token_ids[:num_delivered])
        assert rest.token_ids == whole.token_ids[num_delivered:]
        assert (rest.finish_reason, rest.num_completion_tokens) == (whole.finish_reason, len(whole.token_ids))
        assert rest.num_prompt_tokens == 3
        assert rest.num_cached_tokens <= 3
    other.scheduler.check()


def test_log_probs_of_a_resumed_request_are_those_of_its_new_tokens(core: EngineCore) -> None:
    params = SamplingParams(max_tokens=10, logprobs=True, ignore_eos=True)
    whole = generate(core, [[5, 6]], [params])[0]
    core.add(1, [5, 6], params, 0.0, tuple(whole.token_ids[:7]))
    outputs = [output for _ in range(3) for output in core.step()]
    assert [p for o in outputs for p in o.log_probs or ()] == pytest.approx(whole.log_probs[7:], abs=1e-5)


def test_more_resumed_tokens_than_max_tokens_are_refused(core: EngineCore) -> None:
    with pytest.raises(InvalidRequest, match="resume_token_ids holds 3 tokens; max_tokens is 2"):
        core.add(1, [5], SamplingParams(max_tokens=2), 0.0, (1, 2, 3))
    with pytest.raises(InvalidRequest, match="resume_token_ids holds the token id 300"):
        core.add(1, [5], SamplingParams(), 0.0, (1, 300))


def test_a_nan_in_the_logits_ends_one_request_and_the_others_say_the_same(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    alone = generate(core, [[5, 6]], [params])[0].token_ids
    model = core.runner.model

    def poisoned(batch: Any, cache: Any) -> torch.Tensor:
        logits = model(batch, cache)
        for row, sequence in enumerate(batch.sampling):
            if sequence.request_id == 2 and sequence.num_output_tokens == 3:
                logits[row, 17] = torch.nan
        return logits

    monkeypatch.setattr(core.runner, "model", poisoned)
    core.add(1, [5, 6], params, 0.0)
    core.add(2, [7, 8], params, 0.0)
    outputs: list[RequestOutput] = []
    while core.has_work:
        outputs += core.step()
        core.scheduler.check()
    assert [t for o in outputs if o.request_id == 1 for t in o.token_ids] == alone
    failed = [o for o in outputs if o.request_id == 2]
    assert [o.finish_reason for o in failed] == [None, None, None, FinishReason.ERROR]
    assert (failed[-1].error, failed[-1].error_code) == (
        "the model's logits are not finite: the largest is nan",
        "INTERNAL",
    )


def test_an_exception_in_one_sequences_stop_check_ends_it_alone(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("engine.text.stop_strings.StopStringChecker.push", broken)
    watched, free = (SamplingParams(max_tokens=4, ignore_eos=True, stop=stop) for stop in (("x",), ()))
    completions = generate(core, [[5], [6]], [watched, free])
    assert [c.finish_reason for c in completions] == [FinishReason.ERROR, FinishReason.LENGTH]
    assert "ZeroDivisionError" in caplog.text
    core.scheduler.check()


def test_a_deadline_ends_a_request_with_all_its_tokens_or_before_it_began(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon, past = SchedulingParams(deadline_ms=3_600_000), SchedulingParams(deadline_ms=1)
    params = SamplingParams(max_tokens=50, ignore_eos=True, stop=("never",))
    core.add(1, [5, 6, 7], params, time.monotonic(), scheduling=soon)
    core.add(2, [5, 6, 7], params, 0.0, scheduling=past)
    first = core.step()
    schedule = core.scheduler.schedule
    monkeypatch.setattr(core.scheduler, "schedule", lambda now: schedule(now + 7200.0))
    ended = {o.request_id: o for o in first + core.step() if o.finish_reason is not None}
    assert {o.finish_reason for o in ended.values()} == {FinishReason.DEADLINE}
    assert (ended[1].num_completion_tokens, ended[2].num_completion_tokens) == (1, 0)
    assert sum(len(o.token_ids) for o in (*first, ended[1]) if o.request_id == 1) == 1
    assert (core.has_work, core.read_stats().kv_usage, core.read_stats().num_expired) == (False, 0.0, 2)
