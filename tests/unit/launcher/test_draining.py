"""How the gateway is asked to end: once, to finish what is open; a second time, to cut it."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.launcher.gateway import GatewayOptions, GatewayProcess
from scripts.launcher.leftovers import new_tag
from tests.polling import PAUSE_SECONDS

# Notes each request to end, and ends at the second one, or SECONDS after the first.
GATEWAY = """
import signal, sys
def end(number, frame):
    print("asked", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: (print("cut", flush=True), sys.exit(0)))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGALRM, lambda *_: (print("finished", flush=True), sys.exit(0)))
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(GatewayOptions("127.0.0.1", 1, 2), [], {}, tmp_path, new_tag())
    yield process
    process.kill()


def start(gateway: GatewayProcess, seconds: float) -> None:
    gateway.command = [sys.executable, "-c", GATEWAY.replace("SECONDS", str(seconds))]
    gateway.start()
    deadline = time.monotonic() + 10
    while "up" not in gateway.log_tail() and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)


def test_open_requests_finish_within_the_time(gateway: GatewayProcess) -> None:
    start(gateway, 0.3)
    gateway.stop(timeout=10.0)
    assert gateway.log_tail().split() == ["up", "asked", "finished"]
    assert gateway.exit_code == 0


def test_what_is_still_open_after_the_time_is_cut(gateway: GatewayProcess) -> None:
    start(gateway, 60)
    gateway.stop(timeout=0.3)
    assert gateway.log_tail().split() == ["up", "asked", "cut"]
    assert gateway.exit_code == 0
