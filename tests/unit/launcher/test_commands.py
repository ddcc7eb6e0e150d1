"""Command lines that the launcher runs or prints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.routing.config import RoutingConfig
from scripts.launcher import examples, paths, screen, test_command
from scripts.launcher.cluster import Cluster
from scripts.launcher.gateway import GatewayOptions, GatewayProcess, gateway_fields
from scripts.launcher.instance import InstanceOptions, TritonInstance
from scripts.launcher.options import chosen_model
from scripts.launcher.ports import InstancePorts, free_ports
from scripts.launcher.signals import StopRequested, call_on_signals, raise_on_signals
from scripts.launcher.test_command import check_commands, run_checks
from scripts.launcher.tritonserver import TritonServer


@pytest.fixture
def instance(tmp_path: Path) -> TritonInstance:
    server = TritonServer(Path("/bin/true"), tmp_path / "backends")
    options = InstanceOptions(server, tmp_path, {"SCALELLM_NUM_THREADS": "3"}, tmp_path / "logs", "scalellm-1-ab-")
    return TritonInstance(4, InstancePorts(1001, 1002, 1003), options, "wide")


def test_instance_gets_its_ports_and_regions_of_its_own_name(instance: TritonInstance, tmp_path: Path) -> None:
    assert {
        f"--model-repository={tmp_path}",
        "--http-port=1001",
        "--grpc-port=1002",
        "--metrics-port=1003",
        "--backend-config=python,shm-region-prefix-name=scalellm-1-ab-4-",
        f"--backend-directory={tmp_path / 'backends'}",
    } <= set(instance.command)
    assert (instance.http_url, instance.grpc_url) == ("127.0.0.1:1001", "127.0.0.1:1002")
    assert instance.metrics_url == "127.0.0.1:1003"


def test_release_server_is_left_its_own_backends(tmp_path: Path) -> None:
    options = InstanceOptions(TritonServer(Path("/bin/true"), None), tmp_path, {}, tmp_path, "scalellm-1-ab-")
    command = TritonInstance(0, InstancePorts(1, 2, 3), options).command
    assert not [part for part in command if "backend-directory" in part]


def test_children_find_this_python_its_library_and_the_project(instance: TritonInstance) -> None:
    assert instance.env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert instance.env["PYTHONPATH"].split(os.pathsep)[0] == str(paths.ROOT)
    assert instance.env["LD_LIBRARY_PATH"]
    assert instance.env["SCALELLM_NUM_THREADS"] == "3"
    assert instance.env[paths.TAG_ENV] == "scalellm-1-ab-4-"


def test_gateway_knows_every_instance_by_its_two_addresses(instance: TritonInstance, tmp_path: Path) -> None:
    options = GatewayOptions("0.0.0.0", 9001, 9002, ("--more",))
    gateway = GatewayProcess(options, [instance, instance], {}, tmp_path, "scalellm-1-ab-")
    assert gateway.command[-3:] == ["--config", str(tmp_path / "gateway.json"), "--more"]
    fields = gateway_fields(options, [instance, instance], RoutingConfig())
    assert fields["instances"] == 2 * [{"grpc": "127.0.0.1:1002", "metrics": "127.0.0.1:1003", "pool": "wide"}]
    assert (fields["grpc_address"], fields["http_address"]) == ("0.0.0.0:9001", "0.0.0.0:9002")
    assert (gateway.grpc_url, gateway.http_url) == ("127.0.0.1:9001", "127.0.0.1:9002")


def test_model_is_the_option_else_the_environments_else_the_repositorys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.MODEL_ENV, "/models/env")
    assert chosen_model(Path("/models/option")) == Path("/models/option")
    assert chosen_model(None) == Path("/models/env")
    monkeypatch.delenv(paths.MODEL_ENV)
    assert chosen_model(None) == paths.DEFAULT_MODEL


def test_cluster_without_a_gateway_says_so(tmp_path: Path) -> None:
    cluster = Cluster(1, server=TritonServer(Path("/bin/true"), None), with_gateway=False, log_dir=tmp_path)
    with pytest.raises(RuntimeError, match="no gateway"):
        _ = cluster.gateway


def test_examples_are_valid_programs_with_the_address_in_them() -> None:
    for example in (examples.tritonclient_example("h:1"), examples.openai_example("h:1")):
        assert "h:1" in example
        compile("\n".join(example.splitlines()[1:-1]), "example", "exec")
    assert "http://h:1/v2/models/llm/generate_stream" in examples.curl_example("h:1")
    checked = subprocess.run(["sh", "-n", "-c", examples.curl_example("h:1")], check=False)
    assert checked.returncode == 0


def test_interface_that_does_not_answer_gets_no_example() -> None:
    assert not screen.answers(f"127.0.0.1:{free_ports(1)[0]}", "/v1/models")


def test_all_checks_run_with_pytest_last() -> None:
    assert [command[0] for command in check_commands([])] == ["ruff", "ruff", "pyright", "kernels.aot", "pytest"]
    assert "--sampled" not in check_commands([])[-2]
    assert "--sampled" in check_commands(["--fast"])[-2]
    assert check_commands(["-x", "tests/unit"])[-1] == ["pytest", "-x", "tests/unit"]
    marks = "not slow and not e2e and not numeric and not process"
    assert check_commands(["--fast", "-x"])[-1] == ["pytest", "-m", marks, "-x"]
    for arguments in [], ["--fast"]:
        assert check_commands(arguments)[-1][1:3] == ["-n", "2"]


def test_one_failed_check_fails_the_whole_but_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.py").write_text("print('good ran')")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(test_command.paths, "ROOT", tmp_path)
    assert run_checks([["bad"], ["good"]]) == 3
    lines = capfd.readouterr().out.splitlines()
    assert "good ran" in lines
    assert any(line.startswith("== bad: FAILED in ") for line in lines)
    assert run_checks([["good"], ["bad"]]) == 3
    assert run_checks([["good"]]) == 0


def test_first_signal_asks_to_stop_and_later_ones_do_not_interrupt_the_stopping() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    calls: list[int] = []
    try:
        raise_on_signals()
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        call_on_signals(lambda: calls.append(1))
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert calls == [1]


@pytest.mark.parametrize("command", ["serve_command", "chat_command", "test_command"])
def test_help_names_the_options(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"scripts.launcher.{command}", "--help"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"serve_command": "--replicas", "chat_command": "--url", "test_command": "--fast"}[command] in result.stdout
