"""Quantized weights and caches on a GPU, with a device of host memory in its place: same answers, and no waits."""

from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import Completion, generate
from engine.quantization.quantized_linear import QuantizedLinear
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.gpu.fake_cuda import fake_cuda

SIZES: dict[str, Any] = {"block_size": 4, "num_blocks": 200, "num_threads": 1}
SIZES |= {"max_num_batched_tokens": 24, "max_num_seqs": 6}
PARAMS = [
    SamplingParams(max_tokens=12, ignore_eos=True, logprobs=True),
    SamplingParams(max_tokens=12, ignore_eos=True, logprobs=True, temperature=0.8, seed=4),
    SamplingParams(max_tokens=12, ignore_eos=True, logprobs=True, stop_token_ids=(9, 10), min_tokens=3),
]
PROMPTS = [[(7 * i + j) % 250 + 5 for j in range(5 + 9 * i)] for i in range(len(PARAMS))]


def run(core: EngineCore) -> list[Completion]:
    return generate(core, PROMPTS, PARAMS)


def check_on_device(model: TinyModel, monkeypatch: pytest.MonkeyPatch, **options: Any) -> EngineCore:
    """Assert that a fake GPU says what the host says, replays what it recorded and waits for nothing else."""
    monkeypatch.setattr("engine.quantization.quantized_linear.CPU_SCHEMES", ("int8", "float8"))  # inputs too
    on_host = run(EngineCore(EngineConfig(model=model.path, device="cpu", **SIZES, **options)))
    with fake_cuda(monkeypatch) as fake:
        core = EngineCore(EngineConfig(model=model.path, device="cuda", **SIZES, **options))
        fake.waits.clear()
        fake.replays = 0
        on_device = run(core)
        assert fake.replays > 0
        assert not fake.waits
    assert [c.token_ids for c in on_device] == [c.token_ids for c in on_host]
    for ours, theirs in zip(on_device, on_host, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-3)
    return core


@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic", "int4:16", "fp8:block"])
def test_weights_are_multiplied_as_they_are_stored(
    tiny_llama: TinyModel, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = check_on_device(tiny_llama, monkeypatch, quantization=scheme)
    linears = [module for module in core.runner.model.modules() if isinstance(module, QuantizedLinear)]
    assert len(linears) >= 4 * core.model_config.num_layers


@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic", "int4:16", "fp8"])
def test_experts_are_multiplied_as_they_are_stored(
    make_model: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("Mixtral", num_experts_per_tok=2, num_local_experts=3)
    check_on_device(model, monkeypatch, quantization=scheme)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_keys_and_values_are_kept_in_8_bits(tiny_llama: TinyModel, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = check_on_device(tiny_llama, monkeypatch, kv_cache_dtype=kind)
    assert core.runner.cache.keys.element_size() == 1
