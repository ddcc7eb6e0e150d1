"""What hangs is noticed: a step by rank 0's clock, on a device too, and rank 0's end by a rank that is stuck."""

import os
import subprocess
import sys
import threading
from contextlib import closing
from multiprocessing.connection import Connection, Pipe

import pytest
import torch

from engine.parallel import rank_process
from engine.parallel.rank_process import LinkWatch
from engine.parallel.step_clock import StepClock
from tests.gpu.fake_cuda import fake_cuda

TIMEOUT = 60.0
LEAVES_AT_ONCE = """
import os
from engine.parallel.executor import Invitation
from engine.parallel.local_executor import LocalExecutor
LocalExecutor(is_fresh={is_fresh}).start(Invitation("127.0.0.1", 9, bytes(32)), 2)
os._exit(0)
"""


def test_on_the_host_a_step_takes_as_long_as_its_computing() -> None:
    clock = StepClock(torch.device("cpu"))
    assert clock.seconds == 0.0
    with clock.step():
        assert clock.seconds > 0.0
    assert clock.seconds == 0.0


def test_on_a_device_a_step_takes_until_what_it_launched_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as device:
        clock = StepClock(torch.device("cuda", 0))
        device.is_done = False
        with clock.step():
            pass
        assert clock.seconds > 0.0
        device.is_done = True
        assert clock.seconds == 0.0


def test_a_step_that_failed_counts_as_one_that_hangs() -> None:
    clock = StepClock(torch.device("cpu"))
    with pytest.raises(ValueError, match="this one"), clock.step():
        raise ValueError("this one")
    assert clock.seconds > 0.0


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of what would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(rank_process, "LEAVE_SECONDS", 0.0)
    return codes


def watch_until_the_link_ends(link: Connection, peer: Connection, *, leaves: bool) -> None:
    watch = LinkWatch(link)
    (thread,) = [each for each in threading.enumerate() if each.name == "link"]
    peer.send("a message that nobody reads")
    if leaves:
        watch.close()
    peer.close()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize(("leaves", "expected"), [(False, [1]), (True, [])])
def test_a_rank_that_is_stuck_ends_when_its_link_does(exits: list[int], leaves: bool, expected: list[int]) -> None:
    link, peer = Pipe()
    with closing(link):
        watch_until_the_link_ends(link, peer, leaves=leaves)
    assert exits == expected


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_rank_whose_core_ends_while_it_imports_or_joins_ends_too(*, is_fresh: bool) -> None:
    # the rank has the pipe as well, so its end is read only when both have ended
    command = [sys.executable, "-c", LEAVES_AT_ONCE.format(is_fresh=is_fresh)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True)
    assert done.stdout == b""
