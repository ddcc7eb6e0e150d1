"""What is refused before anything starts, and the cure each refusal names."""

import json
import socket
from pathlib import Path

import pytest

from scripts.launcher import checks
from scripts.launcher.errors import LaunchError
from scripts.launcher.fleet import Fleet
from scripts.launcher.paths import DEFAULT_MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 2**20)
    return folder


def refusal(model: Path) -> str:
    with pytest.raises(LaunchError) as caught:
        checks.check_model(model)
    assert "\n" not in str(caught.value)
    assert "Cure: " in str(caught.value)
    return str(caught.value)


def test_complete_folder_is_accepted(model: Path) -> None:
    checks.check_model(model)


def test_the_repositorys_own_model_is_accepted() -> None:
    checks.check_model(DEFAULT_MODEL)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).unlink()
    assert name.removeprefix("model") in refusal(model)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_config_that_describes_no_model_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert "config.json" in refusal(model)


def test_git_lfs_pointer_is_refused_with_the_command_that_fetches_it(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(model)


def test_file_that_only_the_index_knows_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing" in refusal(model)


def test_broken_index_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text("[]")
    assert "index" in refusal(model)


def test_weights_count_as_in_their_files_and_quantized_ones_of_a_short_model_twice(model: Path) -> None:
    assert checks.weights_gib(model) == pytest.approx(1 / 1024)
    for dtype, times in (("float32", 1), ("float16", 2)):
        config = {"architectures": ["x"], "dtype": dtype, "quantization_config": {"quant_method": "awq"}}
        (model / "config.json").write_text(json.dumps(config))
        assert checks.weights_gib(model) == pytest.approx(times / 1024)


def test_more_memory_than_there_is_is_refused_with_both_numbers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALELLM_KV_CACHE_GIB", "10000")
    with pytest.raises(LaunchError, match=r"need about 2000\d\.. GiB .* are available"):
        checks.check_memory(model, Fleet.of(2))
    monkeypatch.setenv("SCALELLM_KV_CACHE_GIB", "0.01")
    checks.check_memory(model, Fleet.of(1))


def test_containers_limit_counts_where_it_is_less_than_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    assert checks.available_gib(tmp_path / "meminfo", tmp_path) == 8
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(str(2**30))
    assert checks.available_gib(tmp_path / "meminfo", tmp_path) == 8
    (tmp_path / "memory.max").write_text(str(3 * 2**30))
    assert checks.available_gib(tmp_path / "meminfo", tmp_path) == 2


def test_kv_cache_size_that_is_no_number_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALELLM_KV_CACHE_GIB", "lots")
    with pytest.raises(LaunchError, match="lots"):
        checks.check_memory(model, Fleet.of(1))


def test_occupied_port_is_refused_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} .*--grpc-port"):
            checks.check_port("127.0.0.1", port, "--grpc-port")
    checks.check_port("127.0.0.1", port, "--grpc-port")


def test_address_of_another_machine_is_refused_with_the_reason() -> None:
    with pytest.raises(LaunchError, match=r"cannot listen on 192\.0\.2\.1:9 \(.*--host"):
        checks.check_port("192.0.2.1", 9, "--grpc-port")


def test_small_shared_memory_is_refused_with_dockers_option(tmp_path: Path) -> None:
    checks.check_shared_memory(1, tmp_path)
    with pytest.raises(LaunchError, match="--shm-size=1g"):
        checks.check_shared_memory(10**9, tmp_path)
