import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.tokenizer_folders import make_byte_level
from tests.triton_models import fake_pb_utils

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture
def load_adapter(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Import a model.py as Triton does, with the stand-in for its module; Triton's own process is not needed."""

    def load(name: str) -> ModuleType:
        path = ROOT / "model_repository" / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"adapter_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_pb_utils)
    monkeypatch.setenv("SCALELLM_MODEL", str(model_folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield load
    fake_pb_utils.MetricFamily.made.clear()
