"""Real tritonservers behind the real gateway."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.config import DEFAULT_MODEL, EngineConfig
from engine.core import EngineCore
from scripts.launcher.cluster import Cluster
from scripts.launcher.leftovers import tagged_processes
from scripts.launcher.supervisor import supervised

ADAPTERS = ("first", "second")


@contextmanager
def leaving_nothing(cluster: Cluster) -> Iterator[Cluster]:
    """Run a cluster whose children leave no process and no shared memory when it stops."""
    with cluster:
        tags = [child.tag for child in cluster.children]
        assert all(tagged_processes(tag) for tag in tags)
        yield cluster
    assert not [pid for tag in tags for pid in tagged_processes(tag)]
    assert not [path for path in Path("/dev/shm").iterdir() if cluster.tag in path.name]


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two instances of the demo model and the gateway."""
    with leaving_nothing(Cluster(2, log_dir=tmp_path_factory.mktemp("logs"))) as running:
        yield running


@pytest.fixture(scope="package")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the demo model, strong enough to change what it says."""
    made = tmp_path_factory.mktemp("adapters")
    facts = json.loads((DEFAULT_MODEL / "config.json").read_text())
    size = facts["hidden_size"]
    for seed, name in enumerate(ADAPTERS):
        generator = torch.Generator().manual_seed(seed)
        (made / name).mkdir()
        config: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
        (made / name / "adapter_config.json").write_text(json.dumps(config))
        num_inputs = facts["num_attention_heads"] * facts.get("head_dim", size // facts["num_attention_heads"])
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(facts["num_hidden_layers"]):
            module = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
            tensors[f"{module}.lora_A.weight"] = 0.1 * torch.randn(4, num_inputs, generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(size, 4, generator=generator)
        save_file(tensors, made / name / "adapter_model.safetensors")
    return made


@pytest.fixture(scope="package")
def healing_cluster(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two instances with adapters and the gateway; what dies is started again."""
    planned = Cluster(2, env={"SCALELLM_ADAPTERS": str(adapters)}, log_dir=tmp_path_factory.mktemp("logs"))
    with leaving_nothing(planned) as running, supervised(running, lambda _line: None):
        yield running


@pytest.fixture(scope="package")
def offline() -> EngineCore:
    """The demo model in this process: what every stream is compared with."""
    return EngineCore(EngineConfig(num_threads=1, kv_cache_gib=0.25))
