"""Embeddings against transformers' hidden states, alone and in one batch with generation."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.core import EngineCore
from engine.errors import InvalidRequest, PromptTooLong
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.task_params import TaskParams
from tests.conftest import TinyModel
from tests.models.adapters import load, make_adapter
from tests.models.checks import core_for, random_prompts

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "Qwen2Moe": {
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 16,
    },
}
TASKS = [TaskParams(embed=kind, normalize_embedding=n) for kind in ("mean", "last") for n in (True, False)]


@torch.inference_mode()
def expected(oracle: Any, prompt: list[int], task: TaskParams) -> np.ndarray:
    states = oracle(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
    pooled = states.mean(dim=0) if task.embed == "mean" else states[-1]
    return (torch.nn.functional.normalize(pooled, dim=0) if task.normalize_embedding else pooled).numpy()


def run(core: EngineCore) -> dict[int, list[RequestOutput]]:
    outputs: dict[int, list[RequestOutput]] = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
        core.scheduler.check()
    return outputs


def embeddings(core: EngineCore, prompts: list[list[int]], tasks: list[TaskParams], **options: Any) -> list[np.ndarray]:
    for index, (prompt, task) in enumerate(zip(prompts, tasks, strict=True)):
        core.add(index, prompt, SamplingParams(), time.monotonic(), task=task, **options)
    outputs = run(core)
    found: list[np.ndarray] = []
    for index, prompt in enumerate(prompts):
        (output,) = outputs[index]
        assert (output.finish_reason, output.token_ids, output.ends_request) == (FinishReason.STOP, [], True)
        assert (output.num_prompt_tokens, output.num_completion_tokens) == (len(prompt), 0)
        assert output.embedding is not None
        found.append(output.embedding)
    return found


def check_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-4 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_embeddings_are_pooled_states_however_prompts_are_cut(
    make_model: Callable[..., TinyModel], family: str, task: TaskParams
) -> None:
    model = make_model(family, **FAMILIES[family])
    core = core_for(model.path, max_num_batched_tokens=8, max_num_seqs=4)
    prompts = random_prompts([1, 4, 30, 17, 8])
    for _ in range(2):  # the second time prefixes are in the cache
        for prompt, ours in zip(prompts, embeddings(core, prompts, [task] * 5), strict=True):
            check_close(ours, expected(model.oracle, prompt, task))


def test_last_token_pooling_finds_prefixes_and_mean_pooling_feeds_them(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path)
    (prompt,) = random_prompts([33])
    found: list[int] = []
    for kind in ("mean", "last", "mean"):
        core.add(0, prompt, SamplingParams(), time.monotonic(), task=TaskParams(embed=kind))
        found.append(run(core)[0][0].num_cached_tokens)
    assert found == [0, 32, 0]


def test_embeddings_and_generation_share_steps_and_blocks(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path, num_blocks=30, max_num_batched_tokens=8, max_num_seqs=8)
    texts, prompts = random_prompts([40, 25, 33]), random_prompts([5, 9, 13], seed=6)
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        core.add(10 + index, prompt, params, time.monotonic())
    for _ in range(3):
        core.step()
    for index, text in enumerate(texts):
        core.add(index, text, SamplingParams(), time.monotonic(), task=TASKS[0])
    outputs = run(core)
    assert core.read_stats().num_preemptions > 0
    for index, text in enumerate(texts):
        embedding = outputs[index][-1].embedding
        assert embedding is not None
        check_close(embedding, expected(tiny_llama.oracle, text, TASKS[0]))
    for index, prompt in enumerate(prompts):
        tokens = [token for output in outputs[10 + index] for token in output.token_ids]
        assert tiny_llama.confirms(prompt, tiny_llama.greedy(prompt, 40)[: 40 - len(tokens)] + tokens)
    assert core.scheduler.kv.pool.num_used == 0


def test_a_text_that_is_preempted_half_way_is_pooled_anew(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path, num_blocks=13, max_num_batched_tokens=8, max_num_seqs=4)
    (text,) = random_prompts([40])
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    core.add(1, [5, 6, 7], params, time.monotonic())
    core.add(2, [8, 9], params, time.monotonic())
    core.step()
    core.add(0, text, SamplingParams(), time.monotonic(), task=TASKS[0])
    outputs = run(core)
    embedding = outputs[0][0].embedding
    assert outputs[0][0].num_preemptions > 0
    assert embedding is not None
    check_close(embedding, expected(tiny_llama.oracle, text, TASKS[0]))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
def test_an_adapter_counts_for_embeddings_as_well(tiny_llama: TinyModel, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path, "a")
    core = core_for(tiny_llama.path, adapters=tmp_path)
    prompts = random_prompts([6, 21])
    found = embeddings(core, prompts, [TASKS[0]] * 2, adapter=load(core, adapter))
    for prompt, ours in zip(prompts, found, strict=True):
        check_close(ours, expected(adapter.merged.oracle, prompt, TASKS[0]))


def test_a_prompt_as_long_as_the_model_allows_is_embedded_and_a_longer_one_refused(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path)
    (ours,) = embeddings(core, [[5] * 256], [TASKS[0]])
    assert np.linalg.norm(ours) == pytest.approx(1.0)
    with pytest.raises(PromptTooLong, match="257 tokens; it alone is more than the model's limit of 256"):
        embeddings(core, [[5] * 257], [TASKS[0]])


@pytest.mark.parametrize("option", [{"max_tokens": 5}, {"n": 2}, {"logprobs": True}, {"temperature": 0.5}])
def test_options_of_a_completion_are_refused(tiny_llama: TinyModel, option: dict[str, Any]) -> None:
    core = core_for(tiny_llama.path)
    with pytest.raises(
        InvalidRequest, match=f"embed takes no options of sampling or stopping, got .*{next(iter(option))}"
    ):
        core.add(0, [5], SamplingParams(**option), 0.0, task=TASKS[0])


def test_states_that_are_not_finite_fail_their_request_only(
    tiny_llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_for(tiny_llama.path)
    model = core.runner.model

    def poisoned(batch: Any, cache: Any) -> torch.Tensor:
        logits = model(batch, cache)
        batch.pooled[0, 3] = torch.nan
        return logits

    monkeypatch.setattr(core.runner, "model", poisoned)
    for index in range(2):
        core.add(index, [5, 6 + index], SamplingParams(), 0.0, task=TASKS[0])
    outputs = run(core)
    assert (outputs[0][0].error, outputs[0][0].error_code) == ("the model's hidden states are not finite", "INTERNAL")
    check_close(outputs[1][0].embedding, expected(tiny_llama.oracle, [5, 7], TASKS[0]))  # type: ignore[arg-type]


def test_an_embedding_can_be_aborted(tiny_llama: TinyModel) -> None:
    core = core_for(tiny_llama.path, max_num_batched_tokens=8, max_num_seqs=4)
    core.add(0, [5] * 20, SamplingParams(), 0.0, task=TASKS[0])
    core.step()
    (output,) = core.abort(0)
    assert (output.finish_reason, output.embedding) == (FinishReason.CANCELLED, None)
    assert (core.has_work, core.scheduler.kv.pool.num_used) == (False, 0)
