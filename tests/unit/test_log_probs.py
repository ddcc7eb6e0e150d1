"""Log-probabilities of chosen, likeliest and prompt tokens against torch and transformers."""

import math

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import generate
from engine.outputs import FinishReason, RequestOutput
from engine.reply_stream import Delivery, ReplyStream
from engine.sampling_params import SamplingParams
from engine.top_tokens import TopTokens
from tests.conftest import TinyModel

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


@pytest.fixture(scope="module")
def core(tiny_llama: TinyModel) -> EngineCore:
    config = EngineConfig(
        model=tiny_llama.path, block_size=4, num_blocks=100, num_threads=1, max_num_seqs=4, max_num_batched_tokens=4
    )
    return EngineCore(config)  # so small a budget computes the prompt in pieces


def oracle_log_probs(model: TinyModel, token_ids: list[int]) -> torch.Tensor:
    """Return what transformers says about the token after each one, [T, V]."""
    with torch.no_grad():
        return model.oracle(torch.tensor([token_ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("num_top", [1, 3, 20])
def test_top_tokens_are_the_models_own_whatever_is_drawn(core: EngineCore, tiny_llama: TinyModel, num_top: int) -> None:
    params = SamplingParams(
        max_tokens=7, temperature=1.5, seed=1, top_k=4, logprobs=True, top_logprobs=num_top, ignore_eos=True
    )
    completion = generate(core, [PROMPT], [params])[0]
    oracle = oracle_log_probs(tiny_llama, PROMPT + completion.token_ids)[len(PROMPT) - 1 : -1]
    values, ids = oracle.topk(num_top, dim=-1)
    assert completion.top.token_ids == ids.flatten().tolist()
    torch.testing.assert_close(torch.tensor(completion.top.log_probs), values.flatten(), atol=1e-4, rtol=1e-4)


def test_prompt_log_probs_are_transformers_also_behind_a_cached_prefix(core: EngineCore, tiny_llama: TinyModel) -> None:
    expected = oracle_log_probs(tiny_llama, PROMPT)[:-1].gather(1, torch.tensor(PROMPT[1:]).unsqueeze(1)).squeeze(1)
    for n in (1, 2):
        for completion in generate(core, [PROMPT], [SamplingParams(max_tokens=2, prompt_logprobs=True, n=n)]):
            torch.testing.assert_close(torch.tensor(completion.prompt_log_probs), expected, atol=1e-4, rtol=1e-4)
    assert generate(core, [[5]], [SamplingParams(max_tokens=1, prompt_logprobs=True)])[0].prompt_log_probs == []


def test_prompt_log_probs_survive_preemption(core: EngineCore, tiny_llama: TinyModel) -> None:
    params = [SamplingParams(max_tokens=30, prompt_logprobs=True, ignore_eos=True)] * 3
    prompts = [[20 + i] * 9 for i in range(3)]
    config = EngineConfig(model=tiny_llama.path, block_size=4, num_blocks=16, num_threads=1, max_num_seqs=3)
    tight = EngineCore(config)
    squeezed = generate(tight, prompts, params)
    assert tight.read_stats().num_preemptions > 0
    for roomy, other in zip(generate(core, prompts, params), squeezed, strict=True):
        assert other.prompt_log_probs == pytest.approx(roomy.prompt_log_probs, abs=1e-4)
        assert other.token_ids == roomy.token_ids


def outputs_of(core: EngineCore, params: SamplingParams, resume_ids: tuple[int, ...] = ()) -> list[RequestOutput]:
    outputs = core.add(1, PROMPT, params, 0.0, resume_ids)
    while core.has_work:
        outputs += core.step()
    return outputs


def test_an_echoed_prompt_comes_first_with_its_log_probs_and_top_tokens(
    core: EngineCore, tiny_llama: TinyModel
) -> None:
    params = SamplingParams(max_tokens=5, echo=True, logprobs=True, top_logprobs=2, ignore_eos=True)
    outputs = outputs_of(core, params)
    reply = ReplyStream(core.tokenizer, Delivery(echo_ids=PROMPT)).take(outputs)
    completion = tiny_llama.greedy(PROMPT, 5)
    everything = PROMPT + completion
    assert reply.chunk.token_ids == everything
    assert (reply.token_index, reply.num_completion_tokens, reply.prompt_log_probs) == (0, 5, [])
    oracle = oracle_log_probs(tiny_llama, everything)[:-1]
    expected = oracle.gather(1, torch.tensor(everything[1:]).unsqueeze(1)).squeeze(1)
    assert math.isnan(reply.log_probs[0])
    torch.testing.assert_close(torch.tensor(reply.log_probs[1:]), expected, atol=1e-4, rtol=1e-4)
    assert len(reply.top.token_ids) == len(reply.top.log_probs) == 2 * len(everything)
    assert reply.top.places(1).token_ids == oracle.topk(2, dim=-1).indices.flatten().tolist()


@pytest.mark.parametrize("num_delivered", [4, 10, 12])
def test_an_echoing_request_is_resumed_within_the_prompt_and_behind_it(core: EngineCore, num_delivered: int) -> None:
    params = SamplingParams(max_tokens=5, echo=True, logprobs=True, top_logprobs=2, ignore_eos=True)
    whole = ReplyStream(core.tokenizer, Delivery(echo_ids=PROMPT)).take(outputs_of(core, params))
    delivered = whole.chunk.token_ids[:num_delivered]
    outputs = outputs_of(core, params, tuple(delivered[len(PROMPT) :]))
    rest = ReplyStream(core.tokenizer, Delivery(delivered, PROMPT)).take(outputs)
    assert delivered + rest.chunk.token_ids == whole.chunk.token_ids
    assert rest.log_probs == pytest.approx(whole.log_probs[num_delivered:], abs=1e-4)
    assert rest.top.token_ids == whole.top.places(num_delivered).token_ids
    assert (rest.token_index, rest.num_completion_tokens) == (num_delivered, 5)


def test_prompt_log_probs_leave_with_the_first_reply_only_and_never_again(core: EngineCore) -> None:
    def output(token_id: int, prompt: list[float] | None = None, end: FinishReason | None = None) -> RequestOutput:
        return RequestOutput(1, [token_id], finish_reason=end, prompt_log_probs=prompt)

    for delivery, expected in ((Delivery(prompt_log_probs=True), 3), (Delivery([65], prompt_log_probs=True), 0)):
        stream = ReplyStream(core.tokenizer, delivery)
        assert len(stream.take([output(66, [-1.0, -2.0])]).prompt_log_probs) == expected
        assert stream.take([output(67, end=FinishReason.STOP)]).prompt_log_probs == []


def test_top_tokens_are_cut_and_joined_place_by_place() -> None:
    top = TopTokens()
    top.extend(TopTokens(2, [1, 2], [-1.0, -2.0]))
    top.extend(TopTokens(2, [3, 4], [-3.0, -4.0]))
    assert top.places(1) == TopTokens(2, [3, 4], [-3.0, -4.0])
    assert top.places(0, 1) == TopTokens(2, [1, 2], [-1.0, -2.0])
    assert TopTokens().places(0, 5) == TopTokens()
