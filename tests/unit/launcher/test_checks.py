"""What is refused before anything starts, and the cure each refusal names."""

import json
import socket
from pathlib import Path

import pytest

from engine.config import EngineConfig
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
    write_tensors(folder, {"model.embed_tokens.weight": ("BF16", [1024, 512])})
    return folder


def write_tensors(folder: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a safetensors file that has no data: what it would hold is in its header."""
    header = {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


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


LINEAR = "model.layers.0.mlp.up_proj"
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
ROUNDED_INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


def compressed(form: str, inputs: object = None, **weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": INT8 | weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"all": group}}


@pytest.mark.parametrize(
    ("quantization", "option", "tensors", "mib"),
    [
        (None, "", {f"{LINEAR}.weight": ("F32", [1024, 1024])}, 4),
        (None, "", {f"{LINEAR}.weight": ("BF16", [1024, 1024])}, 2),
        (None, "int8_dynamic", {f"{LINEAR}.weight": ("BF16", [1024, 1024])}, 1),
        (None, "fp8", {f"{LINEAR}.weight": ("BF16", [1024, 1024]), "lm_head.weight": ("BF16", [1024, 512])}, 5),
        (None, "int8_dynamic", {"model.embed_tokens.weight": ("BF16", [1024, 1024])}, 3),  # and the head made of it
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128},
            "",
            {f"{LINEAR}.qweight": ("I32", [1024, 128]), f"{LINEAR}.scales": ("F16", [8, 1024])},
            4 + 1 / 64,
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": 128},
            "",
            {f"{LINEAR}.qweight": ("I32", [256, 1024])},
            4,
        ),
        (compressed("pack-quantized", num_bits=4), "", {f"{LINEAR}.weight_packed": ("I32", [1024, 128])}, 4),
        (compressed("int-quantized"), "", {f"{LINEAR}.weight": ("I8", [1024, 1024])}, 4),
        (compressed("int-quantized", ROUNDED_INPUTS), "", {f"{LINEAR}.weight": ("I8", [1024, 1024])}, 1),
        ({"quant_method": "fp8"}, "", {f"{LINEAR}.weight": ("F8_E4M3", [1024, 1024])}, 4),
        ({"quant_method": "mxfp4"}, "", {"model.layers.0.mlp.experts.down_proj_blocks": ("U8", [4, 1024, 8, 16])}, 4),
        (
            {"quant_method": "mxfp4"},
            "int8_dynamic",
            {"model.layers.0.mlp.experts.down_proj_blocks": ("U8", [4, 1024, 8, 16])},
            1,
        ),
    ],
)
def test_weights_count_as_they_are_in_memory_on_a_cpu(
    model: Path, quantization: object, option: str, tensors: dict[str, tuple[str, list[int]]], mib: float
) -> None:
    if quantization is not None:
        (model / "config.json").write_text(json.dumps({"architectures": ["x"], "quantization_config": quantization}))
    write_tensors(model, tensors)
    config = EngineConfig(model=model, device="cpu", quantization=option)
    assert checks.weights_gib(model, config) == pytest.approx(mib / 1024)


def test_weights_count_as_in_their_files_on_a_gpu(model: Path) -> None:
    size = (model / "model.safetensors").stat().st_size
    assert checks.weights_gib(model, EngineConfig(model=model, device="cuda")) == pytest.approx(size / 2**30)


def test_files_that_cannot_be_read_and_unknown_quantizations_are_refused_before_the_start(model: Path) -> None:
    config = EngineConfig(model=model, device="cpu")
    (model / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(LaunchError, match="cannot be read as safetensors"):
        checks.weights_gib(model, config)
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "hqq"}}))
    with pytest.raises(LaunchError, match="quantized by 'hqq'"):
        checks.weights_gib(model, config)


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
