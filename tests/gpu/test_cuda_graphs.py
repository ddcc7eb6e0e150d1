"""Steps over fixed buffers say what steps over fresh tensors say, with padding, and replayed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import Completion, generate
from engine.outputs import RequestOutput
from engine.results import Results
from engine.sampling_params import SamplingParams
from engine.step_run import StepRun
from engine.step_shapes import StepShape
from tests.conftest import TinyModel
from tests.gpu.fake_cuda import FakeCuda, fake_cuda

SIZES: dict[str, Any] = {"block_size": 4, "num_blocks": 100, "num_threads": 1, "max_num_seqs": 7}
PROMPTS = [[(7 * i + j) % 250 + 5 for j in range(3 + 5 * (i % 4))] for i in range(9)]
PARAMS = [SamplingParams(max_tokens=4 + 3 * (i % 5), ignore_eos=True, logprobs=i == 2) for i in range(9)]


def said(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


@pytest.fixture(scope="module")
def plain(tiny_llama: TinyModel) -> list[list[int]]:
    return said(generate(EngineCore(EngineConfig(model=tiny_llama.path, device="cpu", **SIZES)), PROMPTS, PARAMS))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with fake_cuda(monkeypatch) as device:
        yield device


def test_padding_changes_nothing_and_stays_in_its_block(tiny_llama: TinyModel, plain: list[list[int]]) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, device="cpu", **SIZES))
    graphs = core.runner.graphs = core.runner.make_graphs()
    core.runner.cache.keys.fill_(torch.nan)
    shapes: list[StepShape] = []
    run = graphs.run
    graphs.run = lambda batch, shape: (shapes.append(shape), run(batch, shape))[1]
    assert said(generate(core, PROMPTS, PARAMS)) == plain
    assert {shape.num_seqs for shape in shapes if shape.is_decode} == {1, 2, 4, 7}
    assert {shape.num_tokens for shape in shapes if not shape.is_decode} == {32, 128}
    assert core.stats.num_steps == len(shapes)
    assert core.runner.cache.keys[:, -1, :, 0].isfinite().all()
    assert core.runner.cache.keys[:, -1, :, 1:].isnan().all()


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_replayed_steps_say_the_same(
    tiny_llama: TinyModel, plain: list[list[int]], fake: FakeCuda, overlap: str
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, overlap=overlap, **SIZES))
    fake.waits.clear()
    fake.replays = fake.reads = 0
    before = core.stats.num_steps
    assert said(generate(core, PROMPTS, PARAMS)) == plain
    assert fake.replays > 10
    assert fake.reads == core.stats.num_steps - before
    assert not fake.waits


def test_a_replay_is_launched_in_place_of_the_models_kernels(tiny_llama: TinyModel, fake: FakeCuda) -> None:
    counts: list[int] = []
    for cuda_graphs in (True, False):
        core = EngineCore(EngineConfig(model=tiny_llama.path, cuda_graphs=cuda_graphs, overlap="off", **SIZES))
        core.add(1, [5, 6, 7], SamplingParams(max_tokens=5, ignore_eos=True), 0.0)
        core.step()
        fake.kernels = 0
        core.step()
        counts.append(fake.kernels)
    assert counts[0] == 1  # the choice of the token, behind the replay
    assert counts[1] > 15


def test_drafts_are_judged_by_their_own_step_whatever_has_been_replayed_since(
    tiny_llama: TinyModel, plain: list[list[int]], fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, draft_model=tiny_llama.path, speculation="draft", **SIZES))
    graphs, take_tokens = core.runner.graphs, Results.take_tokens
    assert graphs is not None

    def take_late(results: Results, run: StepRun) -> list[RequestOutput]:
        graphs._logits.fill_(torch.nan)
        return take_tokens(results, run)

    monkeypatch.setattr(Results, "take_tokens", take_late)
    fake.replays = 0
    assert said(generate(core, PROMPTS, PARAMS)) == plain
    assert fake.replays > 10
    assert core.stats.num_accepted_draft_tokens > 10
