"""Real tritonservers behind the real gateway."""

from collections.abc import Iterator

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from scripts.launcher.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two instances of the demo model and the gateway."""
    with Cluster(2, log_dir=tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(scope="session")
def offline() -> EngineCore:
    """The demo model in this process: what every stream is compared with."""
    return EngineCore(EngineConfig(num_threads=1, kv_cache_gib=0.25))
