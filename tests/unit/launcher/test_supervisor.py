"""What is restarted, when, and where."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scripts.launcher.cluster import Cluster
from scripts.launcher.heal import heal
from scripts.launcher.heartbeat import Pulse
from scripts.launcher.instance import TritonInstance
from scripts.launcher.leftovers import new_tag
from scripts.launcher.ports import InstancePorts
from scripts.launcher.process import Child
from scripts.launcher.supervisor import FIRST_WAIT, LIVED_SECONDS, LONGEST_WAIT, Backoff, Supervisor
from tests.polling import PAUSE_SECONDS


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    sleeper = Child("the sleeper", [sys.executable, "-c", "input()"], os.environ, tmp_path / "log", new_tag())
    sleeper.command = [sys.executable, "-c", "import signal; signal.pause()"]
    sleeper.start()
    yield sleeper
    sleeper.kill()


def watching(child: Child, said: list[str]) -> Supervisor:
    cluster = cast("Cluster", cast("Any", SimpleNamespace(children=[child], ready_timeout=60.0)))
    return Supervisor(cluster, said.append)


def test_wait_doubles_with_each_death_in_a_row_up_to_a_limit() -> None:
    backoff = Backoff()
    waits = [backoff.next_wait(lived=1.0) for _ in range(10)]
    assert waits[:4] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT, 8 * FIRST_WAIT]
    assert waits[-1] == LONGEST_WAIT


def test_wait_starts_over_after_a_long_life() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.next_wait(lived=1.0)
    assert backoff.next_wait(lived=LIVED_SECONDS + 1) == FIRST_WAIT


def test_living_child_is_left_alone(child: Child) -> None:
    said: list[str] = []
    pid = child.pid
    watching(child, said).check()
    assert (child.pid, said) == (pid, [])


def test_killed_child_is_started_again_after_the_wait_and_both_are_said(child: Child) -> None:
    said: list[str] = []
    supervisor = watching(child, said)
    before = child.pid
    os.kill(before, signal.SIGKILL)
    child.wait(5)
    died = time.monotonic()
    while len(said) < 2 and time.monotonic() < died + 10:
        supervisor.check()
    assert time.monotonic() - died >= FIRST_WAIT
    assert child.is_running
    assert child.pid != before
    assert "exit code -9" in said[0]
    assert f"pid {child.pid}" in said[1]


def check_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        supervisor.check()
        time.sleep(PAUSE_SECONDS)


class Sleeper(TritonInstance):
    """An instance that only sleeps."""

    def __init__(self, log: Path) -> None:
        self.ports = InstancePorts(1, 2, 3)
        Child.__init__(
            self, "instance 0", [sys.executable, "-c", "import signal; signal.pause()"], os.environ, log, new_tag()
        )


@pytest.fixture
def stubless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sleeper]:
    monkeypatch.setattr("scripts.launcher.supervisor.scrape", lambda _url: {"llm_engine": 1.0})
    sleeper = Sleeper(tmp_path / "log")
    sleeper.start()
    yield sleeper
    sleeper.kill()


@pytest.mark.parametrize("trouble", [None, "llm cannot be loaded"])
def test_an_instance_whose_stub_died_is_healed_once_and_restarted_if_that_fails(
    stubless: Sleeper, trouble: str | None
) -> None:
    said: list[str] = []
    asked: list[str] = []
    cluster = cast("Cluster", cast("Any", SimpleNamespace(children=[stubless], ready_timeout=60.0)))
    supervisor = Supervisor(cluster, said.append, lambda url: asked.append(url) or trouble)
    (watched,) = supervisor._watched
    dead = {"has_answered": True, "beats": {"llm_engine": 1.0}, "still": {"llm_engine": 99.0}}
    watched.pulse = Pulse(60.0, **dead)  # type: ignore[arg-type]
    supervisor.check()
    check_until(supervisor, lambda: len(said) == 2)
    assert asked == [stubless.http_url]
    assert stubless.is_running == (trouble is None)
    assert "heartbeat of llm_engine" in said[0]
    if trouble is None:
        supervisor.check()
        assert len(said) == 2
        watched.pulse = Pulse(60.0, **dead)  # type: ignore[arg-type]
        supervisor.check()
        assert len(asked) == 1
        assert not stubless.is_running


def test_while_one_instance_is_healed_another_child_is_watched_and_its_own_death_is_seen_when_it_is_over(
    stubless: Sleeper, child: Child
) -> None:
    said: list[str] = []
    may_end = threading.Event()
    cluster = cast("Cluster", cast("Any", SimpleNamespace(children=[stubless, child], ready_timeout=60.0)))
    supervisor = Supervisor(cluster, said.append, lambda _url: None if may_end.wait(10) else "too late")
    supervisor._watched[0].pulse = Pulse(60.0, has_answered=True, beats={"llm_engine": 1.0}, still={"llm_engine": 99.0})
    supervisor.check()
    before = child.pid
    os.kill(before, signal.SIGKILL)
    child.wait(5)
    check_until(supervisor, lambda: child.is_running)
    assert child.pid != before
    os.kill(stubless.pid, signal.SIGKILL)
    stubless.wait(5)
    supervisor.check()
    assert "instance 0: it ended" not in "\n".join(said)
    may_end.set()
    check_until(supervisor, lambda: stubless.is_running)
    assert "instance 0: it ended with exit code -9" in "\n".join(said)


@pytest.mark.parametrize("is_healed", [True, False])
def test_an_instance_that_loses_a_process_while_it_loads_models_is_restarted(
    stubless: Sleeper, monkeypatch: pytest.MonkeyPatch, is_healed: bool
) -> None:
    said: list[str] = []
    cluster = cast("Cluster", cast("Any", SimpleNamespace(children=[stubless], ready_timeout=60.0)))
    supervisor = Supervisor(cluster, said.append, lambda _url: None if stubless.wait(10) else "too late")
    (watched,) = supervisor._watched
    watched.pulse = Pulse(60.0, has_answered=True, beats={"llm_engine": 1.0}, still={"llm_engine": 99.0})
    stubless.kill()
    stubless.command[2] = "import os, signal, time; os.fork() or os._exit(0); signal.pause()"
    stubless.start()
    deadline = time.monotonic() + 10
    while not any(stubless.parts().values()):
        assert time.monotonic() < deadline
        time.sleep(PAUSE_SECONDS)
    if is_healed:
        supervisor.check()
        supervisor.check()  # what had ended before does not count
        assert [text.rpartition("; ")[2] for text in said] == ["loading its models again"]
        watched.former = frozenset()
    else:
        monkeypatch.setattr("scripts.launcher.supervisor.scrape", lambda _url: None)
        watched.pulse = Pulse(60.0)
    before = stubless.pid
    check_until(supervisor, lambda: stubless.is_running and stubless.pid != before)
    assert "a process of it ended while it was loading its models" in said[int(is_healed)]


@pytest.mark.parametrize(
    "broken", [None, "/v2/repository/models/preprocessing/unload", "/v2/repository/models/llm/load"]
)
def test_models_are_unloaded_from_the_ensemble_down_and_then_the_ensemble_is_loaded(broken: str | None) -> None:
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            paths.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(500 if self.path == broken else 200)
            self.end_headers()
            self.wfile.write(b"out of order" if self.path == broken else b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        reason = heal(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    unloads = [f"/v2/repository/models/{m}/unload" for m in ("llm", "llm_engine", "preprocessing", "postprocessing")]
    order = [*unloads, "/v2/repository/models/llm/load"]
    assert paths == (order if broken is None else order[: order.index(broken) + 1])
    assert (reason is None) == (broken is None)
    assert broken is None or "out of order" in str(reason)
