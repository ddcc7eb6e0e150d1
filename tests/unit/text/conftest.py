import pytest

from engine.text.tokenizer import Tokenizer
from tests.tokenizer_folders import make_byte_fallback, make_byte_level


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(make_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(make_byte_fallback(tmp_path_factory.mktemp("byte_fallback")))


@pytest.fixture(params=["byte_level", "byte_fallback"], scope="session")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
