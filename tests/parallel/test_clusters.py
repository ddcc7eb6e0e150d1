"""Ranks that Ray or torchrun starts: they serve; one lost in mid-stream is an error at once; a new one is used."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from engine.errors import EngineUnavailable
from tests.conftest import TinyModel
from tests.parallel.harness import LONG, TIMEOUT, Harness
from tests.parallel.machines import Machine, makes_networks, network, three_machines

ROOT = Path(__file__).resolve().parents[2]
KEY = "5a" * 32

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def end(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all that it has started, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family, TIMEOUT)


@contextmanager
def started(
    *command: str, env: dict[str, str], until: str = "", within: tuple[str, ...] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """Run a python module, by the command `within`, from when it has written `until` until it is ended."""
    process = subprocess.Popen(
        [*within, sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        while until and until not in (line := process.stdout.readline()):
            assert line, "it has ended"
        yield process
    finally:
        if process.returncode is None:
            end(process)


def ray_node(machine: Machine, *options: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    where = f"--node-ip-address={machine.address}"
    command = ["start", where, "--block", "--object-store-memory=100000000", *options]
    env = {"RAY_USAGE_STATS_ENABLED": "0"}
    return started("ray.scripts.scripts", *command, env=env, until="Ray runtime started", within=machine.within)


def test_a_ray_node_lost_in_mid_stream_is_an_error_and_a_new_one_is_used(tiny_llama: TinyModel) -> None:
    with (
        three_machines() as (here, first, second),
        ExitStack() as stack,
        tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as temp,
    ):
        address = f"{here.address}:{free_port()}"
        head = ("--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={temp}", "--include-dashboard=false")
        stack.enter_context(ray_node(here, *head, "--num-cpus=0"))
        node = stack.enter_context(ray_node(first, f"--address={address}", "--num-cpus=1"))
        harness = Harness(tiny_llama.path, rank_executor="ray", ray_address=address)
        stack.callback(harness.client.close)
        harness.client.start()
        harness.check_serves(tiny_llama)
        old_pid = harness.client.pid
        harness.client.submit([5, 6, 7], LONG, time.monotonic())
        end(node)
        harness.check_ends_with_an_error()
        with pytest.raises(EngineUnavailable, match="restarting"):
            harness.client.submit([5, 6, 7], LONG, time.monotonic())
        stack.enter_context(ray_node(second, f"--address={address}", "--num-cpus=1"))
        harness.wait_until_up_again(old_pid)
        harness.check_serves(tiny_llama)


def test_ranks_that_torchrun_starts_are_awaited_used_and_replaced(tiny_llama: TinyModel) -> None:
    port = str(free_port())
    rank = ("--nproc-per-node=1", "--max-restarts=9", "--monitor-interval=0.1", "-m", "engine.parallel.rank_process")
    command = ("torch.distributed.run", f"--master-port={free_port()}", *rank, "127.0.0.1", port)
    options = {"rank_executor": "external", "rank_address": f"127.0.0.1:{port}", "rank_key": KEY}
    with started(*command, env={"SCALELLM_RANK_KEY": KEY}) as torchrun:
        harness = Harness(tiny_llama.path, **options)
        harness.client.start()
        harness.check_serves(tiny_llama)
        old_pid = harness.client.pid
        harness.client.submit([5, 6, 7], LONG, time.monotonic())
        for child in psutil.Process(torchrun.pid).children():
            child.kill()
        harness.check_ends_with_an_error()
        harness.wait_until_up_again(old_pid)
        harness.check_serves(tiny_llama)
        harness.client.close()


def test_a_machine_whose_network_fails_in_mid_stream_is_an_error_and_a_new_rank_is_used(tiny_llama: TinyModel) -> None:
    if not makes_networks():
        pytest.skip("this process may not make networks")
    port = str(free_port())
    with network() as (here, other, _), ExitStack() as stack:
        command = ("engine.parallel.rank_process", here.address, port, "1")
        options = {"rank_executor": "external", "rank_address": f"{here.address}:{port}", "rank_key": KEY}
        start = partial(started, *command, env={"SCALELLM_RANK_KEY": KEY}, within=other.within)
        rank = stack.enter_context(start())
        harness = Harness(tiny_llama.path, rank_timeout_seconds=5.0, **options)
        stack.callback(harness.client.close)
        harness.client.start()
        harness.check_serves(tiny_llama)
        old_pid = harness.client.pid
        other.set_link("down")
        harness.client.submit([5, 6, 7], LONG, time.monotonic())
        harness.check_ends_with_an_error()
        end(rank)
        other.set_link("up")
        stack.enter_context(start())
        harness.wait_until_up_again(old_pid)
        harness.check_serves(tiny_llama)
