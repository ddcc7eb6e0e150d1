"""The core as a process: a death ends every request with an error at once, and it comes back by itself."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineUnavailable, InvalidRequest, ModelError
from engine.outputs import FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from tests.conftest import TinyModel
from tests.polling import PAUSE_SECONDS

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
TIMEOUT = 60.0


class Harness:
    """A client and what it has said."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.outputs: queue.Queue[RequestOutput] = queue.Queue()
        config = EngineConfig(model=path, block_size=4, num_blocks=256, num_threads=1, **options)
        self.client = EngineClient(config, self.take)

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.outputs.put(output)

    def until_final(self, num_requests: int) -> list[RequestOutput]:
        """Collect outputs until that many requests have ended."""
        seen: list[RequestOutput] = []
        while sum(o.finish_reason is not None for o in seen) < num_requests:
            seen.append(self.outputs.get(timeout=TIMEOUT))
        return seen


def wait_until_up(client: EngineClient) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not client.is_up:
        assert time.monotonic() < deadline, "the core did not come back"
        time.sleep(PAUSE_SECONDS)


@pytest.fixture
def harness(tiny_llama: TinyModel) -> Iterator[Harness]:
    harness = Harness(tiny_llama.path)
    harness.client.start()
    yield harness
    harness.client.close()
    assert harness.client.pid is None or not Path(f"/proc/{harness.client.pid}").exists()


@pytest.mark.slow
def test_requests_run_abort_and_survive_a_death_of_the_core(harness: Harness, tiny_llama: TinyModel) -> None:
    client = harness.client
    first = client.submit([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True), time.monotonic())
    outputs = harness.until_final(1)
    assert {o.request_id for o in outputs} == {first}
    assert [t for o in outputs for t in o.token_ids] == tiny_llama.greedy([5, 6, 7], 12)

    aborted = client.submit([5, 6, 7], LONG, time.monotonic())
    client.abort(aborted)
    assert harness.until_final(1)[-1].finish_reason is FinishReason.CANCELLED

    with pytest.raises(InvalidRequest, match="token id 999"):
        client.submit([999], LONG, time.monotonic())

    ids = {client.submit([5, 6, 7 + i], LONG, time.monotonic()) for i in range(3)}
    old_pid = client.pid
    assert old_pid is not None
    os.kill(old_pid, signal.SIGKILL)
    finals = [o for o in harness.until_final(3) if o.finish_reason is not None]
    assert {o.request_id for o in finals} == ids
    assert {o.error_code for o in finals if o.finish_reason is FinishReason.ERROR} <= {"UNAVAILABLE"}
    assert any("ended unexpectedly (exit code -9)" in (o.error or "") for o in finals)

    wait_until_up(client)
    assert client.pid != old_pid
    client.submit([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True), time.monotonic())
    assert [t for o in harness.until_final(1) for t in o.token_ids] == tiny_llama.greedy([5, 6, 7], 12)

    client.submit([5], LONG, time.monotonic())
    client.close()
    assert harness.until_final(1)[-1].finish_reason in {FinishReason.ERROR, FinishReason.LENGTH}
    with pytest.raises(EngineUnavailable):
        client.submit([5], LONG, time.monotonic())


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_refused_at_start(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        harness.client.start()


@pytest.mark.slow
def test_the_core_ends_when_its_parent_is_killed(tiny_llama: TinyModel) -> None:
    script = (
        "import sys, pathlib; from engine.client import EngineClient; from engine.config import EngineConfig\n"
        f"c = EngineClient(EngineConfig(model=pathlib.Path({str(tiny_llama.path)!r}), num_blocks=8), print)\n"
        "c.start()\n"
        "print(c.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdin is not None
    core = Path("/proc") / parent.stdout.readline().strip()
    assert core.is_dir()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + TIMEOUT
    while core.exists():
        assert time.monotonic() < deadline, "the core outlived its parent"
        time.sleep(PAUSE_SECONDS)


@pytest.mark.slow
def test_a_stopped_core_with_a_full_socket_is_replaced_and_frees_who_sends_to_it(tiny_llama: TinyModel) -> None:
    harness = Harness(tiny_llama.path, watchdog_seconds=1.0)
    client = harness.client
    client.start()
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)

    def submit_until_refused() -> None:
        with pytest.raises(EngineUnavailable):
            while True:
                client.submit([5] * 50, LONG, time.monotonic())

    sender = threading.Thread(target=submit_until_refused, daemon=True)
    sender.start()
    sender.join(TIMEOUT)
    assert not sender.is_alive()
    wait_until_up(client)
    client.close()


@pytest.mark.slow
def test_a_core_that_starts_while_the_client_closes_is_ended(
    tiny_llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Harness(tiny_llama.path).client
    popen = subprocess.Popen

    def close_then_start(*args: Any, **options: Any) -> "subprocess.Popen[Any]":
        client.close()
        return popen(*args, **options)

    monkeypatch.setattr("engine.client.subprocess.Popen", close_then_start)
    with pytest.raises(EngineUnavailable):
        client.start()
    assert not Path(f"/proc/{client.pid}").exists()
