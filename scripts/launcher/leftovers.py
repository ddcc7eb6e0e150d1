"""What a launch leaves on the machine, found by its tag: processes and shared-memory regions.

Knows /proc and /dev/shm. Does not know what the processes are. Standard library only.

Every process of a launch carries the tag in its environment, and every region its python backends create begins
with it, so both are found even after their parents were killed. A tag ends with a dash, and the tags of
parts begin with the tag of the whole.
"""

import os
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path

from scripts.launcher.paths import TAG_ENV

SHM = Path("/dev/shm")  # noqa: S108 - the kernel's folder of shared-memory regions
KILL_SECONDS = 5.0
PAUSE_SECONDS = 0.02


def new_tag() -> str:
    """Return a tag that no other launch has."""
    return f"scalellm-{os.getpid()}-{secrets.token_hex(4)}-"


def tagged_processes(tag: str) -> list[int]:
    """Return the ids of living processes, other than this one, whose launch tag begins with `tag`."""
    wanted = f"{TAG_ENV}={tag}".encode()
    own = os.getpid()
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in found if pid != own and _has_variable(pid, wanted)]


def children_of(pid: int) -> dict[int, bool]:
    """Return the ids of a process's own children, each with whether it has ended and is not yet waited for."""
    stats = {int(entry.name): _stat(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return {child: stat[0] == "Z" for child, stat in stats.items() if stat and int(stat[1]) == pid}


def kill_tagged(tag: str) -> None:
    """Kill every process of the tag, again until none is left or the time is over."""
    deadline = time.monotonic() + KILL_SECONDS
    while (pids := tagged_processes(tag)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def tagged_regions(tag: str) -> list[Path]:
    """Return the shared-memory regions whose name begins with `tag`."""
    return sorted(SHM.glob(f"{tag}*"))


def sweep(tag: str) -> None:
    """Leave nothing of the tag: kill its processes, then remove its regions."""
    kill_tagged(tag)
    for region in tagged_regions(tag):
        region.unlink(missing_ok=True)


def _has_variable(pid: int, start: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(start) for entry in environment.split(b"\0"))


def _stat(process: Path) -> list[str]:
    """Return a process's state, its parent and what follows in proc_pid_stat(5); nothing where it is gone."""
    try:
        return (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
