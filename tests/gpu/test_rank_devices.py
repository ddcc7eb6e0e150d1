"""Ranks on stand-in devices: each on its own, the same tokens, collectives within graphs, one wait a step in all."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.offline import generate
from engine.parallel import experts
from engine.parallel.gpu_seats import deal_gpus
from engine.parallel.leader import rank_config
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.gpu.fake_cuda import FREE_BYTES, FakeCuda, fake_cuda
from tests.gpu.fake_ranks import DeviceLeader

SIZES: dict[str, Any] = {"block_size": 4, "num_blocks": 200, "num_threads": 1}
SIZES |= {"max_num_batched_tokens": 24, "max_num_seqs": 5}
PARAMS = [
    SamplingParams(max_tokens=12, ignore_eos=True),
    SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, top_p=0.9, seed=3),
    SamplingParams(max_tokens=7, ignore_eos=True, logprobs=True),
    SamplingParams(max_tokens=9, ignore_eos=True, repetition_penalty=1.3),
]
PROMPTS = [[(7 * i + j) % 250 + 5 for j in range(5 + 9 * i)] for i in range(len(PARAMS))]
NUM_RANKS = 4


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr("engine.core.RankLeader", DeviceLeader)
    monkeypatch.setattr(experts, "prefers_exchange", lambda *_: True)  # not on devices
    with fake_cuda(monkeypatch, num_devices=NUM_RANKS) as device:
        yield device


MODELS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "dense": ("Llama", {}, {"tensor_parallel": 2}),
    "dense, key/value heads copied": ("Llama", {"tie_word_embeddings": True}, {"tensor_parallel": 4}),
    "experts split": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, {"tensor_parallel": 2}),
    "experts dealt out": (
        "Qwen2Moe",
        {"num_experts": 6, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 37},
        {"tensor_parallel": 2, "expert_parallel": 2, "expert_replicas": 1},
    ),
}


@pytest.fixture(scope="module")
def cases(make_model: Callable[..., TinyModel]) -> dict[str, tuple[TinyModel, list[list[int]]]]:
    """Models, and what they say on the host's one rank."""
    made = {name: make_model(family, **sizes) for name, (family, sizes, _) in MODELS.items()}
    return {name: (model, said(core_on("cpu", model.path))) for name, model in made.items()}


def core_on(device: str, path: Path, **options: Any) -> EngineCore:
    return EngineCore(EngineConfig(model=path, device=device, **(SIZES | options)))


def said(core: EngineCore) -> list[list[int]]:
    return [completion.token_ids for completion in generate(core, PROMPTS, PARAMS)]


@pytest.mark.parametrize("name", MODELS)
def test_ranks_on_devices_say_what_one_says_on_the_host_and_wait_once_a_step_in_all(
    cases: dict[str, tuple[TinyModel, list[list[int]]]], fake: FakeCuda, name: str
) -> None:
    model, on_host = cases[name]
    with closing(core_on("auto", model.path, **MODELS[name][2])) as core:
        leader = core.ranks
        assert isinstance(leader, DeviceLeader)
        assert core.runner.cache.keys.device.index == 0
        for device in (fake, *leader.fakes):
            assert not [wait for wait in device.waits if "page-locked=False" in wait]  # weights came by locked pieces
            device.waits.clear()
            device.replays = device.reads = device.downloads = 0
        before = core.stats.num_steps
        assert said(core) == on_host
        num_steps = core.stats.num_steps - before
    assert not fake.waits
    assert fake.reads == num_steps
    assert fake.replays > 5
    for device in leader.fakes:
        assert not device.waits
        assert (device.reads, device.downloads) == (0, 0)
        assert device.replays == fake.replays


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_graph_holds_its_ranks_side_of_every_collective(
    tiny_llama: TinyModel, fake: FakeCuda, cuda_graphs: bool
) -> None:
    with closing(core_on("cuda", tiny_llama.path, tensor_parallel=2, cuda_graphs=cuda_graphs)) as core:
        leader = core.ranks
        assert isinstance(leader, DeviceLeader)
        core.add(1, [5, 6, 7], SamplingParams(max_tokens=5, ignore_eos=True), 0.0)
        core.step()
        fake.kernels = 0
        for ranks in leader.collectives:
            ranks.launched.clear()
            ranks.computed.clear()
        core.step()
    num_layers = core.model_config.num_layers
    for ranks in leader.collectives:
        assert ranks.computed == {"sum_all": 1 + 2 * num_layers, "gather": 1}
        assert ranks.launched == ({} if cuda_graphs else ranks.computed)
    assert (fake.kernels == 1) is cuda_graphs  # the choice of the token, behind the replay


def test_the_rank_with_least_room_decides_how_large_all_caches_are(
    tiny_llama: TinyModel, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = 300_000
    monkeypatch.setattr(DeviceLeader, "free_bytes", FREE_BYTES - missing)
    with closing(core_on("cuda", tiny_llama.path, tensor_parallel=2, num_blocks=0)) as core:
        block_bytes = 4 * 2 * 3 * 1 * 16 * 4  # half of the key/value heads
        left = int(4 * 2**20 * 0.9) - 2**20 - 500_000 - missing
        assert core.runner.num_blocks == left // block_bytes


def test_a_rank_without_room_is_refused_by_all(
    tiny_llama: TinyModel, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceLeader, "free_bytes", 1000)
    with pytest.raises(ModelError, match="the GPU of another rank has no room for a single block"):
        core_on("cuda", tiny_llama.path, tensor_parallel=2, num_blocks=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"device": "auto", "tensor_parallel": 3, "expert_parallel": 2},
            "tensor_parallel x expert_parallel is 6, and each rank needs a GPU of its own; this process sees 4",
        ),
        (
            {"device": "cuda:1", "tensor_parallel": 2},
            "device cuda:1 is one GPU, and 2 ranks need one each; give device cuda",
        ),
        ({"device": "cpu", "dtype": "bfloat16", "tensor_parallel": 2}, "dtype bfloat16 needs a GPU"),
    ],
)
def test_a_configuration_that_does_not_suit_the_machine_is_refused(
    tiny_llama: TinyModel, fake: FakeCuda, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        rank_config(EngineConfig(model=tiny_llama.path, **(SIZES | options)), ModelConfig.from_dir(tiny_llama.path))


def test_ranks_are_told_a_type_and_a_kind_of_device(make_llama: Any, fake: FakeCuda) -> None:
    path = make_llama(dtype=torch.bfloat16).path
    config = EngineConfig(model=path, tensor_parallel=2)
    on_gpus = rank_config(config, ModelConfig.from_dir(path))
    assert (on_gpus.device, on_gpus.dtype, on_gpus.num_blocks) == ("cuda", "bfloat16", 0)
    on_host = rank_config(replace(config, device="cpu"), ModelConfig.from_dir(path))
    assert (on_host.device, on_host.dtype) == ("cpu", "float32")
    assert on_host.num_blocks > 0


MACHINE = ("a", "b", "c")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({0: MACHINE, 1: MACHINE, 2: MACHINE}, {0: 0, 1: 1, 2: 2}),
        ({0: MACHINE, 1: ("a",), 2: ("c",)}, {0: 1, 1: 0, 2: 0}),
        ({0: ("a", "b"), 1: ("a", "b"), 2: ("x",), 3: ("y", "z")}, {0: 0, 1: 1, 2: 0, 3: 0}),
        ({0: ("a",), 1: ("a",)}, "rank 1 has no GPU: its machine shows 1 to 2 ranks, and each needs one of its own"),
        ({0: ("a",), 1: ()}, "rank 1 has no GPU: its machine shows 0 to 1 ranks"),
    ],
)
def test_gpus_are_dealt_out_by_name(seen: dict[int, tuple[str, ...]], expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(ModelError, match=expected):
            deal_gpus(seen)
    else:
        assert deal_gpus(seen) == expected
