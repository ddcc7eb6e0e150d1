"""The engine on a GPU, with a device of host memory in its place: same answers, and one wait a step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelError
from engine.gpu_memory import MemoryUse, cache_bytes
from engine.guided_options import Guided
from engine.offline import Completion, generate
from engine.placement import Placement, choose_placement
from engine.sampling_params import SamplingParams
from engine.task_params import TaskParams
from kernels import rms_norm, tuning
from tests.conftest import TinyModel
from tests.gpu.fake_cuda import FakeCuda, fake_cuda

SIZES: dict[str, Any] = {"block_size": 4, "num_blocks": 200, "num_threads": 1}
SIZES |= {"max_num_batched_tokens": 24, "max_num_seqs": 6}
AUTOMATIC: dict[str, Any] = SIZES | {"num_blocks": 0}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 2},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": True},
    {"stop": ("q", "Az", "<2"), "min_tokens": 5},
    {"ignore_eos": False, "stop_token_ids": tuple(range(3, 60)), "min_tokens": 9},
    {"n": 3, "temperature": 1.0, "seed": 6, "logprobs": True},
    {"logit_bias": ((17, 4.0), (18, -100.0)), "bad_words": ("a", "bc")},
    {"guided": Guided("regex", "[a-d]{3}(xy|z)*!"), "temperature": 0.8, "seed": 7},
    {"speculation": 3},
]
PARAMS = [SamplingParams(**({"max_tokens": 16, "ignore_eos": True} | options)) for options in OPTIONS]
PROMPTS = [[(7 * i + j) % 250 + 5 for j in range(5 + 3 * (i % 4))] for i in range(len(OPTIONS))]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with fake_cuda(monkeypatch) as device:
        yield device


@pytest.fixture(scope="module")
def on_host(tiny_llama: TinyModel) -> list[Completion]:
    return generate(EngineCore(EngineConfig(model=tiny_llama.path, device="cpu", **SIZES)), PROMPTS, PARAMS)


def said(completions: list[Completion]) -> list[Any]:
    return [(c.token_ids, c.text, c.finish_reason, c.top.token_ids) for c in completions]


def test_requests_of_all_kinds_say_on_the_device_what_they_say_on_the_host(
    tiny_llama: TinyModel, on_host: list[Completion], fake: FakeCuda
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **SIZES))
    assert core.runner.cache.keys.device == torch.device("cuda", 0)
    fake.waits.clear()
    completions = generate(core, PROMPTS, PARAMS)
    assert said(completions) == said(on_host)
    for ours, theirs in zip(completions, on_host, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.prompt_log_probs == pytest.approx(theirs.prompt_log_probs, abs=1e-4)
    assert not fake.waits


def test_what_a_part_answers_is_added_by_the_norm_behind_it(
    tiny_llama: TinyModel, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, cuda_graphs=False, **SIZES))
    chosen, sums = rms_norm.select_adding, []
    monkeypatch.setattr(rms_norm, "select_adding", lambda device: sums.append(device) or chosen(device))
    generate(core, PROMPTS[:1], [SamplingParams(max_tokens=1)])
    assert len(sums) == 2 * core.model_config.num_layers - 1  # the last answer: only sampled rows are normalized then


def test_what_was_tuned_for_the_device_is_taken_at_the_start(
    tiny_llama: TinyModel, fake: FakeCuda, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.save(tmp_path, torch.cuda.get_device_name(), {})
    with caplog.at_level("INFO"):
        EngineCore(EngineConfig(model=tiny_llama.path, kernel_tuning=tmp_path, **SIZES))
    assert "kernels take what was measured on this kind of device" in caplog.text


def test_a_step_waits_for_the_device_once(tiny_llama: TinyModel, fake: FakeCuda) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **SIZES))
    plain = [replace(params, speculation=0, prompt_logprobs=False) for params in PARAMS]
    fake.waits.clear()
    fake.reads = 0
    before = core.read_stats().num_steps
    generate(core, PROMPTS, plain)
    assert fake.reads == core.read_stats().num_steps - before
    assert not fake.waits


def test_a_checkpoint_in_bfloat16_is_computed_in_it(make_llama: Any, fake: FakeCuda) -> None:
    model = make_llama(dtype=torch.bfloat16, seed=3)
    core = EngineCore(EngineConfig(model=model.path, **SIZES))
    types = {parameter.dtype for parameter in core.runner.model.parameters()}
    assert types == {core.runner.cache.keys.dtype} == {torch.bfloat16}
    [completion] = generate(core, [[5, 6, 7]], [SamplingParams(max_tokens=1, logprobs=True)])
    expected = model.logits([5, 6, 7])[-1].log_softmax(-1)
    assert completion.log_probs[0] == pytest.approx(float(expected[completion.token_ids[0]]), abs=0.3)


@pytest.fixture(scope="module")
def mixtures(make_model: Any) -> list[tuple[TinyModel, list[Any]]]:
    """Models of experts, and what they say on the host."""
    sizes = {"num_experts_per_tok": 2, "num_local_experts": 5}
    made = [make_model("Mixtral", **sizes), make_model("Qwen2Moe", num_experts=6, moe_intermediate_size=32)]
    host = [EngineCore(EngineConfig(model=model.path, device="cpu", **SIZES)) for model in made]
    return [(model, said(generate(core, PROMPTS, PARAMS))) for model, core in zip(made, host, strict=True)]


def test_experts_are_computed_together_and_recorded(
    mixtures: list[tuple[TinyModel, list[Any]]], fake: FakeCuda
) -> None:
    for model, on_host in mixtures:
        core = EngineCore(EngineConfig(model=model.path, **SIZES))
        fake.waits.clear()
        fake.replays = 0
        assert said(generate(core, PROMPTS, PARAMS)) == on_host
        assert fake.replays > 0
        assert not fake.waits


def embed(core: EngineCore) -> Any:
    core.add(1, list(range(5, 40)), SamplingParams(), 0.0, task=TaskParams(embed="mean"))
    return [output for _ in range(9) if core.has_work for output in core.step()][-1].embedding


@pytest.fixture(scope="module")
def embedding(tiny_llama: TinyModel) -> Any:
    return embed(EngineCore(EngineConfig(model=tiny_llama.path, device="cpu", **SIZES)))


def test_embeddings_are_read_from_the_device(tiny_llama: TinyModel, embedding: Any, fake: FakeCuda) -> None:
    on_device = embed(EngineCore(EngineConfig(model=tiny_llama.path, **SIZES)))
    assert on_device == pytest.approx(embedding, abs=1e-5)


def test_the_cache_takes_what_the_largest_step_leaves(tiny_llama: TinyModel, fake: FakeCuda) -> None:
    core = EngineCore(EngineConfig(model=tiny_llama.path, **AUTOMATIC))
    left = int(4 * 2**20 * 0.9) - 2**20 - 500_000
    assert core.runner.num_blocks == left // (4 * 2 * 3 * 2 * 16 * 4)


@pytest.mark.parametrize(
    ("use", "share", "expected"),
    [
        (MemoryUse(total=100, free=80, step_peak=10), 0.9, 60),
        (MemoryUse(total=100, free=100, step_peak=0), 1.0, 100),
        (MemoryUse(total=100, free=80, step_peak=10), 0.3, None),
    ],
)
def test_the_caches_share_of_the_memory(use: MemoryUse, share: float, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ModelError, match=r"gpu_memory_share=0.3 of 100 bytes leaves nothing"):
            cache_bytes(use, share)
    else:
        assert cache_bytes(use, share) == expected


@pytest.mark.parametrize(
    ("device", "dtype", "checkpoint", "gpus", "expected"),
    [
        ("auto", "auto", "bfloat16", 0, ("cpu", torch.float32)),
        ("auto", "auto", "bfloat16", 2, ("cuda:0", torch.bfloat16)),
        ("cpu", "auto", "float16", 2, ("cpu", torch.float32)),
        ("cuda:1", "float16", "bfloat16", 2, ("cuda:1", torch.float16)),
        ("cuda", "auto", "float32", 1, ("cuda:0", torch.float32)),
        ("cpu", "bfloat16", "bfloat16", 1, "dtype bfloat16 needs a GPU"),
        ("cuda:2", "auto", "float32", 2, "device cuda:2 does not exist; this process sees 2 GPUs"),
        ("cuda", "auto", "float8", 1, "the checkpoint's type float8 is none of"),
    ],
)
def test_device_and_type_are_chosen_by_configuration_checkpoint_and_machine(
    device: str, dtype: str, checkpoint: str, gpus: int, expected: Any
) -> None:
    config = EngineConfig(model=Path("anywhere"), device=device, dtype=dtype)
    if isinstance(expected, str):
        with pytest.raises(ModelError, match=expected):
            choose_placement(config, checkpoint, gpus)
    else:
        assert choose_placement(config, checkpoint, gpus) == Placement(torch.device(expected[0]), expected[1])


@pytest.mark.parametrize("bad", [{"device": "gpu"}, {"device": "cuda:x"}, {"dtype": "fp8"}, {"gpu_memory_share": 1.1}])
def test_unknown_devices_and_types_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(bad))} must be"):
        EngineConfig(**bad)
