"""Speculation changes how many steps an answer takes, never the answer."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.draft_model import DraftModel
from engine.errors import InvalidRequest, ModelError
from engine.guided_options import Guided
from engine.offline import Completion, generate
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.conftest import TinyModel

SIZES: dict[str, Any] = {"block_size": 4, "num_threads": 1, "max_num_batched_tokens": 24, "max_num_seqs": 6}
ROOMY: dict[str, Any] = SIZES | {"num_blocks": 400}
TIGHT: dict[str, Any] = SIZES | {"num_blocks": 34}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 2},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"repetition_penalty": 1.2, "temperature": 0.9, "seed": 3},
    {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": True},
    {"stop": ("q", "Az", "<2"), "min_tokens": 5},
    {"max_tokens": 1},
    {"max_tokens": 2, "temperature": 1.0, "seed": 5},
    {"max_tokens": 3},
    {"ignore_eos": False, "stop_token_ids": tuple(range(3, 60)), "min_tokens": 9},
    {"n": 3, "temperature": 1.0, "seed": 6, "logprobs": True},
    {"logit_bias": ((17, 4.0), (18, -100.0)), "bad_words": ("a", "bc")},
    {"guided": Guided("regex", "[a-d]{3}(xy|z)*!"), "temperature": 0.8, "seed": 7},
]
PARAMS = [SamplingParams(**({"max_tokens": 24, "ignore_eos": True} | options)) for options in OPTIONS]
PREFIX = [(7 * i) % 250 + 5 for i in range(21)]
PROMPTS = [PREFIX[: 21 if i % 2 else 5] + [60 + i] * (i % 5) for i in range(len(OPTIONS))]


class Prophet:
    """Proposes what is known to come, with a wrong token here and there."""

    def __init__(self, texts: list[list[int]], seed: int) -> None:
        self._texts = texts
        self._random = random.Random(seed)

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._guess(sequence.token_ids, number) for sequence, number in wishes]

    def _guess(self, token_ids: list[int], number: int) -> list[int]:
        ways = [text[len(token_ids) :] for text in self._texts if text[: len(token_ids)] == token_ids]
        ahead = self._random.choice(ways)[: self._random.randint(0, number)] if ways else []
        return [token if self._random.random() < 0.8 else self._random.randrange(300) for token in ahead]


def asking(speculation: str | int) -> list[SamplingParams]:
    return [replace(params, speculation=speculation) for params in PARAMS]


def said(completions: list[Completion]) -> list[tuple[list[int], FinishReason | None, str]]:
    return [(c.token_ids, c.finish_reason, c.text) for c in completions]


def watch_steps(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Check each step's budget and the scheduler behind it; return the numbers of draft tokens, step by step."""
    drafts: list[int] = []
    run = core.runner.run

    def checked(plan: Any) -> Any:
        core.scheduler.check()
        assert sum(i.num_tokens + len(i.draft_ids) for i in plan.scheduled) <= core.scheduler.max_num_batched_tokens
        drafts.append(sum(len(item.draft_ids) for item in plan.scheduled))
        return run(plan)

    monkeypatch.setattr(core.runner, "run", checked)
    return drafts


@pytest.fixture(scope="module")
def plain(tiny_llama: TinyModel) -> list[Completion]:
    """What the requests say, one at a time, without speculation."""
    core = EngineCore(EngineConfig(model=tiny_llama.path, **ROOMY))
    return [c for prompt, params in zip(PROMPTS, PARAMS, strict=True) for c in generate(core, [prompt], [params])]


@pytest.fixture(scope="module")
def texts(plain: list[Completion]) -> list[list[int]]:
    prompts = [prompt for prompt, params in zip(PROMPTS, PARAMS, strict=True) for _ in range(params.n)]
    return [prompt + completion.token_ids for prompt, completion in zip(prompts, plain, strict=True)]


@pytest.mark.parametrize("sizes", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("speculation", ["off", "ngram", 1, 7])
def test_requests_of_all_kinds_say_the_same_with_drafts_right_and_wrong(
    tiny_llama: TinyModel,
    plain: list[Completion],
    texts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    sizes: dict[str, Any],
    speculation: str | int,
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **sizes))
    monkeypatch.setitem(core.speculation._proposers, "ngram", Prophet(texts, seed=4))
    drafts = watch_steps(core, monkeypatch)
    completions = generate(core, PROMPTS, asking(speculation))
    assert said(completions) == said(plain)
    for ours, theirs in zip(completions, plain, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.prompt_log_probs == pytest.approx(theirs.prompt_log_probs, abs=1e-4)
        assert ours.top.token_ids == theirs.top.token_ids
    stats = core.read_stats()
    assert stats.num_draft_tokens == sum(drafts)
    assert (stats.num_draft_tokens == 0) == (speculation == "off")
    assert (stats.num_accepted_draft_tokens > 50) == (speculation != "off")
    assert (stats.num_preemptions > 0) == (sizes is TIGHT)
    assert stats.kv_usage == 0
    core.scheduler.check()


@pytest.mark.parametrize("speculation", ["ngram", "draft"])
@pytest.mark.parametrize("seed", [0, 1], ids=["same model", "another model"])
def test_ngrams_and_a_draft_model_change_no_answer(
    tiny_llama: TinyModel, make_llama: Callable[..., TinyModel], plain: list[Completion], seed: int, speculation: str
) -> None:
    draft = make_llama(seed=seed)
    core = EngineCore(EngineConfig(model=tiny_llama.path, draft_model=draft.path, **TIGHT))
    outputs = generate(core, PROMPTS, asking(speculation))
    assert said(outputs) == said(plain)
    stats = core.read_stats()
    assert stats.num_draft_tokens > (50 if speculation == "draft" else 0)
    if speculation == "draft" and seed == 0:  # wrong only where penalties, biases or the guide have their way
        assert stats.num_accepted_draft_tokens > 0.6 * stats.num_draft_tokens
    assert stats.kv_usage == 0


def test_windows_of_both_models_are_kept(make_model: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("Mistral", sliding_window=6)
    core = EngineCore(EngineConfig(model=model.path, draft_model=model.path, **ROOMY))
    params = [SamplingParams(max_tokens=40, ignore_eos=True, speculation="off", temperature=t, seed=1) for t in (0, 1)]
    prompts = [PREFIX, PREFIX[:9]]
    off = generate(core, prompts, params)
    watch_steps(core, monkeypatch)
    steps = core.read_stats().num_steps
    assert said(generate(core, prompts, [replace(p, speculation="draft") for p in params])) == said(off)
    assert core.read_stats().num_steps - steps < 15


def test_a_draft_model_catches_up_by_the_budget_and_finds_prefixes_again(tiny_llama: TinyModel) -> None:
    config = EngineConfig(model=tiny_llama.path, draft_model=tiny_llama.path, speculation="draft", **ROOMY)
    core = EngineCore(config)
    drafter = core.speculation._proposers["draft"]
    assert isinstance(drafter, DraftModel)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    long = [(3 * i) % 290 + 4 for i in range(90)]
    [first] = generate(core, [long], [params])
    stats = core.read_stats()
    assert stats.num_accepted_draft_tokens == stats.num_draft_tokens > 10
    drafter.propose([])
    assert drafter._kv.pool.num_used == 0
    assert drafter._kv.pool.num_cached >= 90 // 4
    assert generate(core, [long], [params])[0].token_ids == first.token_ids
    drafter._kv.check(drafter._shadows.values())


def test_sampled_tokens_have_the_distribution_of_the_model(tiny_llama: TinyModel) -> None:
    config = EngineConfig(
        model=tiny_llama.path, draft_model=tiny_llama.path, num_blocks=2000, num_threads=1, max_speculating_seqs=128
    )
    core = EngineCore(config)
    prompt, number = [5, 6, 7], 2000
    params = [
        SamplingParams(max_tokens=3, temperature=2.0, top_k=4, seed=seed, ignore_eos=True, speculation="draft")
        for seed in range(number)
    ]
    pairs = [
        tuple(c.token_ids[:2])
        for at in range(0, number, 100)
        for c in generate(core, [prompt] * 100, params[at : at + 100])
    ]
    expected: dict[tuple[int, int], float] = {}
    for first, probability in likeliest(tiny_llama, prompt):
        expected |= {(first, second): probability * p for second, p in likeliest(tiny_llama, [*prompt, first])}
    counts = Counter(pairs)
    assert counts.keys() <= expected.keys()
    chi_square = sum((counts[pair] - number * p) ** 2 / (number * p) for pair, p in expected.items())
    assert chi_square < 37.7  # the 99.9 % point for 15 degrees of freedom
    stats = core.read_stats()
    assert stats.num_accepted_draft_tokens > 0.9 * stats.num_draft_tokens > 0


def likeliest(model: TinyModel, token_ids: list[int]) -> list[tuple[int, float]]:
    """Return the 4 likeliest next tokens and their probabilities at temperature 2."""
    logits, ids = model.logits(token_ids)[-1].topk(4)
    return list(zip(ids.tolist(), torch.softmax(logits.double() / 2, dim=0).tolist(), strict=True))


def test_a_full_batch_does_not_speculate(tiny_llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, speculation="ngram", max_speculating_seqs=2, **ROOMY))
    monkeypatch.setitem(core.speculation._proposers, "ngram", Prophet([[5] * 100], seed=0))
    drafts = watch_steps(core, monkeypatch)
    core.add(1, [5, 5], SamplingParams(max_tokens=40, logit_bias=((5, 100.0),)), 0.0)
    core.add(2, [5, 5, 5], SamplingParams(max_tokens=40, logit_bias=((5, 100.0),)), 0.0)
    core.step()
    core.add(3, [8, 9], SamplingParams(max_tokens=3, ignore_eos=True), 0.0)
    for _ in range(3):
        core.step()
    assert drafts[0] > 0
    assert drafts[1:4] == [0, 0, 0]
    core.step()
    assert drafts[4] > 0
    core.abort(1)
    core.abort(2)


def test_a_final_output_tells_what_was_drafted_and_accepted(tiny_llama: TinyModel) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, speculation="ngram", **ROOMY))
    core.add(1, [5, 6] * 4, SamplingParams(max_tokens=20, logit_bias=((5, 100.0),)), 0.0)
    outputs: list[RequestOutput] = []
    while core.has_work:
        outputs += core.step()
    last, stats = outputs[-1], core.read_stats()
    assert (last.num_draft_tokens, last.num_accepted_tokens) == (
        stats.num_draft_tokens,
        stats.num_accepted_draft_tokens,
    )
    assert last.num_draft_tokens > last.num_accepted_tokens >= 12
    assert len(outputs) == stats.num_steps <= 8
    assert [token for output in outputs for token in output.token_ids] == [5] * 20


def test_a_proposer_that_fails_is_done_without(
    tiny_llama: TinyModel, plain: list[Completion], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, draft_model=tiny_llama.path, **ROOMY))
    drafter = core.speculation._proposers["draft"]
    assert isinstance(drafter, DraftModel)
    run, calls = drafter._runner.run, iter(range(5))

    def breaks_later(plan: Any) -> Any:
        if next(calls, None) is None:
            raise MemoryError
        return run(plan)

    monkeypatch.setattr(drafter._runner, "run", breaks_later)
    assert said(generate(core, PROMPTS, asking("draft"))) == said(plain)
    assert caplog.text.count("speculation by draft has failed and is off from now on") == 1


def test_a_nan_behind_a_draft_token_ends_its_request_only(
    tiny_llama: TinyModel, plain: list[Completion], texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **ROOMY))
    monkeypatch.setitem(core.speculation._proposers, "ngram", Prophet(texts, seed=4))
    model = core.runner.model

    def poisoned(batch: Any, cache: Any) -> torch.Tensor:
        logits = model(batch, cache)
        num_sampling = len(batch.sampling)
        if batch.sampling and batch.sampling[0].request_id == 0 and len(logits) > num_sampling:
            logits[num_sampling] = torch.nan
        return logits

    monkeypatch.setattr(core.runner, "model", poisoned)
    completions = generate(core, PROMPTS, asking("ngram"))
    assert completions[0].finish_reason is FinishReason.ERROR
    assert completions[0].token_ids == plain[0].token_ids[: len(completions[0].token_ids)]
    assert said(completions[1:]) == said(plain[1:])


def test_what_cannot_draft_is_refused(tiny_llama: TinyModel, make_llama: Callable[..., TinyModel]) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **ROOMY))
    with pytest.raises(InvalidRequest, match="speculation by draft is not possible: the engine has no draft_model"):
        core.add(1, [5], SamplingParams(speculation="draft"), 0.0)
    other = make_llama(vocab_size=320)
    with pytest.raises(ModelError, match="has another vocabulary than the model"):
        EngineCore(EngineConfig(model=tiny_llama.path, draft_model=other.path, **ROOMY))


def test_a_draft_model_with_another_padding_of_the_vocabulary_drafts_what_both_have(
    tiny_llama: TinyModel, make_llama: Callable[..., TinyModel], plain: list[Completion]
) -> None:
    for vocab_size in (280, 330):
        draft = make_llama(vocab_size=vocab_size)
        (draft.path / "tokenizer.json").write_bytes((tiny_llama.path / "tokenizer.json").read_bytes())
        core = EngineCore(EngineConfig(model=tiny_llama.path, draft_model=draft.path, **ROOMY))
        assert said(generate(core, PROMPTS, asking("draft"))) == said(plain)
        assert core.read_stats().num_draft_tokens > 0
