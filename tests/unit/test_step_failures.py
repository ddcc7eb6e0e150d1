"""A step that fails costs only the requests that make it fail."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel

BAD_TOKEN = 299
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)
PROMPTS = [[5 + i, 7, 9] for i in range(6)]


@pytest.fixture(scope="module")
def core(tiny_llama: TinyModel) -> EngineCore:
    return EngineCore(EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=200, num_threads=1))


def break_model(core: EngineCore, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Any], None]) -> None:
    """Let `fail` look at each batch before it is computed."""
    model = core.runner.model

    def broken(batch: Any, cache: Any) -> torch.Tensor:
        fail(batch)
        return model(batch, cache)

    monkeypatch.setattr(core.runner, "model", broken)


def raise_at_bad_token(error: Exception) -> Callable[[Any], None]:
    def fail(batch: Any) -> None:
        if bool((batch.input_ids == BAD_TOKEN).any()):
            raise error

    return fail


def run_out(core: EngineCore) -> dict[int, list[RequestOutput]]:
    outputs: dict[int, list[RequestOutput]] = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
        core.scheduler.check()
    return outputs


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("odd\nshape"), r"the model could not be computed: ValueError\('odd\\nshape'\)"),
        (MemoryError(), "the model could not be computed: out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        ),
    ],
)
def test_an_exception_in_a_step_ends_the_request_that_causes_it_and_the_others_say_the_same(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    alone = [c.token_ids for c in generate(core, PROMPTS, [PARAMS] * 6)]
    break_model(core, monkeypatch, raise_at_bad_token(error))
    for request_id, prompt in enumerate([*PROMPTS, [5, BAD_TOKEN]]):
        core.add(request_id, prompt, PARAMS, 0.0)
    outputs = run_out(core)
    assert [[t for o in outputs[i] for t in o.token_ids] for i in range(6)] == alone
    [failed] = outputs[6]
    assert (failed.finish_reason, failed.error_code) == (FinishReason.ERROR, "INTERNAL")
    assert failed.error is not None
    assert re.search(message, failed.error)
    assert core.read_stats().kv_usage == 0


def test_all_sequences_of_a_request_that_fails_end_with_one_error(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: Any) -> None:
        if any(s.request_id == 1 and s.num_output_tokens == 2 for s in batch.sampling):
            raise ZeroDivisionError("oops")

    break_model(core, monkeypatch, fail)
    core.add(1, [5, 6], SamplingParams(max_tokens=9, ignore_eos=True, n=3, seed=1), 0.0)
    core.add(2, [5, 7], PARAMS, 0.0)
    outputs = run_out(core)
    assert [o.finish_reason for o in outputs[1] if o.finish_reason is not None] == [FinishReason.ERROR]
    assert outputs[1][-1].ends_request
    assert outputs[2][-1].finish_reason is FinishReason.LENGTH


def test_a_step_too_large_for_the_memory_is_computed_in_parts(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [SamplingParams(max_tokens=6, ignore_eos=True, prompt_logprobs=True, seed=s) for s in range(6)]
    whole = generate(core, PROMPTS, params)

    def fail(batch: Any) -> None:
        if len(batch.input_ids) > 4:
            raise MemoryError

    break_model(core, monkeypatch, fail)
    parts = generate(core, PROMPTS, params)
    assert [c.token_ids for c in parts] == [c.token_ids for c in whole]
    assert [len(c.prompt_log_probs) for c in parts] == [2] * 6


def test_a_lost_device_ends_the_core_so_that_it_is_started_again(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_model(core, monkeypatch, raise_at_bad_token(torch.AcceleratorError("CUDA error: an illegal memory access")))
    core.add(1, [BAD_TOKEN], PARAMS, 0.0)
    with pytest.raises(torch.AcceleratorError):
        core.step()
    core.abort(1)
