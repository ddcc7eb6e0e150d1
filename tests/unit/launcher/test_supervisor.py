"""What is restarted, when, and where."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scripts.launcher.cluster import Cluster
from scripts.launcher.leftovers import new_tag
from scripts.launcher.process import Child
from scripts.launcher.supervisor import FIRST_WAIT, LIVED_SECONDS, LONGEST_WAIT, Backoff, Supervisor


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
