"""Children, the processes they start in turn, and the shared memory all of them leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.launcher.leftovers import SHM, new_tag, sweep, tagged_processes, tagged_regions
from scripts.launcher.paths import ROOT, TAG_ENV
from scripts.launcher.process import Child
from tests.polling import PAUSE_SECONDS

# A parent with a child in a session of its own and a region of shared memory; says when both exist.
FAMILY = f"""
import os, pathlib, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
pathlib.Path("/dev/shm", os.environ["{TAG_ENV}"] + "region").write_bytes(b"x")
print("up", flush=True)
signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def tag() -> Iterator[str]:
    name = new_tag()
    yield name
    sweep(name)


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
    return bool(condition())


def started(code: str, log: Path, tag: str) -> Child:
    child = Child("a child", [sys.executable, "-c", code], os.environ, log, tag)
    child.start()
    assert until(lambda: "up" in child.log_tail())
    return child


def test_stop_leaves_no_process_and_no_region(tmp_path: Path, tag: str) -> None:
    child = started(FAMILY, tmp_path / "log", tag)
    assert len(tagged_processes(tag)) == 2
    assert len(tagged_regions(tag)) == 1
    child.stop(5.0)
    assert (tagged_processes(tag), tagged_regions(tag)) == ([], [])
    assert not child.is_running


def test_child_killed_from_outside_is_swept_with_its_own_children(tmp_path: Path, tag: str) -> None:
    child = started(FAMILY, tmp_path / "log", tag)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(5)
    assert len(tagged_processes(tag)) == 1
    child.kill()
    assert (tagged_processes(tag), tagged_regions(tag)) == ([], [])


def test_child_that_ignores_the_request_is_killed_after_the_time(tmp_path: Path, tag: str) -> None:
    child = started(STUBBORN, tmp_path / "log", tag)
    child.stop(0.1)
    assert child.exit_code == -signal.SIGKILL


def test_sweeping_one_tag_leaves_others_alone(tmp_path: Path, tag: str) -> None:
    other = started(FAMILY, tmp_path / "log", f"{tag}1-")
    sweep(f"{tag}10-")
    assert other.is_running
    assert len(tagged_regions(f"{tag}1-")) == 1
    other.kill()


def test_stopping_what_never_started_does_nothing(tmp_path: Path, tag: str) -> None:
    child = Child("a child", ["true"], {}, tmp_path / "log", tag)
    child.stop(1.0)
    assert not child.is_running
    assert not child.log.exists()


def test_asking_what_never_started_for_its_pid_is_an_error(tmp_path: Path, tag: str) -> None:
    with pytest.raises(RuntimeError, match="never started"):
        _ = Child("a child", ["true"], {}, tmp_path / "log", tag).pid


def test_log_tail_is_the_end_of_the_log(tmp_path: Path, tag: str) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {index}\n" for index in range(10_000)))
    tail = Child("a child", ["true"], {}, log, tag).log_tail().splitlines()
    assert (len(tail), tail[-1]) == (15, "line 9999")


def test_lines_of_the_log_that_tell_of_an_error_are_picked_out(tmp_path: Path, tag: str) -> None:
    log = tmp_path / "log"
    child = Child("a child", ["true"], {}, log, tag)
    log.write_text("fine\nfailed to load 'llm'\nfine too\n")
    assert child.trouble_in_log() == "failed to load 'llm'"
    log.write_text("fine\nfine too\n")
    assert child.trouble_in_log() == "fine\nfine too"


LAUNCHER = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.launcher.process import Child
from scripts.launcher.watchdog import Watchdog
tag, log = sys.argv[1:]
watchdog = Watchdog(tag)
child = Child("a child", [sys.executable, "-c", {FAMILY!r}], os.environ, pathlib.Path(log), tag + "0-")
child.start()
print(watchdog.pid, flush=True)
signal.pause()
"""


def test_watchdog_sweeps_everything_when_its_launcher_is_killed(tmp_path: Path, tag: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, tag, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout
        watchdog = int(launcher.stdout.readline())
        assert until(lambda: tagged_regions(tag) and len(tagged_processes(tag)) == 2)
        launcher.kill()
    assert until(lambda: not tagged_processes(tag) and not tagged_regions(tag))
    assert until(lambda: not Path(f"/proc/{watchdog}").exists() or is_zombie(watchdog))


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_new_tags_differ_and_name_regions_in_the_shared_memory_folder() -> None:
    first, second = new_tag(), new_tag()
    assert first != second
    assert "/" not in first
    assert SHM.is_dir()


def test_a_refusal_of_the_engine_is_found_in_the_log_as_one_line(tag: str, tmp_path: Path) -> None:
    child = Child("server", ["true"], {}, tmp_path / "log", tag)
    assert child.refusal_in_log() is None
    line = r'I11 pb_stub.cc:366] "Failed to initialize Python stub: ModelError: /m is a Bert\n\nAt:\n  /x.py(1): f\n"'
    child.log.write_text(f"much\n{line}\nmore\n")
    assert child.refusal_in_log() == "/m is a Bert"
