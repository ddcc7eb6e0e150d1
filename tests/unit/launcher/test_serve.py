"""`scripts/serve` where it cannot start: one clear line with its cure, exit code 2, nothing left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.launcher import paths
from scripts.launcher.ports import free_ports

pytestmark = pytest.mark.process


def serve(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.launcher.serve_command", *options],
        cwd=paths.ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(*options: str, **env: str) -> str:
    result = serve(*options, **env)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Cure: " in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def ports() -> list[str]:
    grpc_port, http_port = free_ports(2)
    return ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]


def test_missing_model_folder_is_refused_by_option_and_by_environment(tmp_path: Path) -> None:
    assert f"{tmp_path}/none does not exist" in refusal("--model", str(tmp_path / "none"))
    assert f"{tmp_path}/gone does not exist" in refusal(SCALELLM_MODEL=str(tmp_path / "gone"))


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port"])
def test_occupied_port_is_refused_with_the_option_that_changes_it(ports: list[str], option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} " in (message := refusal(*ports, option, port))
        assert f"give {option} another port" in message


def test_more_instances_than_the_machine_holds_are_refused(ports: list[str]) -> None:
    assert "100000 instances need" in refusal(*ports, "--instances", "100000")


def test_larger_kv_cache_than_memory_is_refused(ports: list[str]) -> None:
    assert "KV cache" in refusal(*ports, SCALELLM_KV_CACHE_GIB="100000")


def test_pools_that_are_wrong_or_given_twice_are_refused(ports: list[str], tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text("pools: [{name: wide, tp: 99}, {name: narrow, replicas: 2}]")
    assert "pool 'wide' cannot be: " in refusal(*ports, "--pools", str(file))
    assert "--pools comes with" in refusal(*ports, "--pools", str(file), "--replicas", "2")
    assert "none.yaml" in refusal(*ports, "--pools", str(tmp_path / "none.yaml"))


def test_ranks_that_the_model_cannot_be_divided_among_are_refused(ports: list[str]) -> None:
    assert "tensor_parallel" in refusal(*ports, "--tp", "64")
    assert "has no experts" in refusal(*ports, "--ep", "2")


def test_tritonserver_that_is_no_program_is_refused(ports: list[str], tmp_path: Path) -> None:
    assert "is not an executable file" in refusal(*ports, "--tritonserver", str(tmp_path))


def test_tritonserver_that_ends_at_once_is_an_error_that_leaves_nothing(ports: list[str], tmp_path: Path) -> None:
    fake = tmp_path / "tritonserver"
    fake.write_text("#!/bin/sh\necho 'error: the reason'\nexit 7\n")
    fake.chmod(0o755)
    result = serve(*ports, "--tritonserver", str(fake), "--prompt", "hi")
    assert (result.returncode, result.stdout) == (2, "")
    assert "instance 0 ended with exit code 7" in result.stderr
    assert "error: the reason" in result.stderr
    assert "Traceback" not in result.stderr
