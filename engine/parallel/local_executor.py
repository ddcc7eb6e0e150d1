"""Ranks as processes beside the engine core.

Knows processes. Does not know what ranks do. They end with their parent, whatever state either is in: see
`engine.parallel.rank_process`.

A core that has just begun is copied (forked): its ranks then need not import torch and numba, some 4 s of a core each,
and share that memory. That is safe only while the process has computed nothing, for OpenMP's threads do not survive
it, so the owner of the process says so; anybody else's ranks are started anew.
"""

import gc
import importlib.util
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from engine.parallel import rank_process
from engine.parallel.executor import KEY_VARIABLE, Invitation

ROOT = Path(__file__).resolve().parents[2]
LEAVE_SECONDS = 2.0
FIRST_FILE = 3  # behind the standard ones


class RankProcess(Protocol):
    """A process that is a rank."""

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        ...

    def end(self) -> None:
        """Wait shortly for it to leave by itself, and kill it."""
        ...


class NewProcess:
    """One that starts from nothing."""

    def __init__(self, invitation: Invitation, rank: int) -> None:
        """Start it; the key goes by the environment, which other users cannot read."""
        where = invitation.host, str(invitation.port)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.parallel.rank_process", *where, str(rank), str(os.getpid())],
            cwd=ROOT,
            env=os.environ | {KEY_VARIABLE: invitation.key.hex()},
            stdin=subprocess.DEVNULL,
        )

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """Wait shortly for it to leave by itself, and kill it."""
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class CopiedProcess:
    """A copy of this process."""

    def __init__(self, invitation: Invitation, rank: int) -> None:
        """Copy it."""
        arguments = invitation, rank, os.getpid()
        self._process = get_context("fork").Process(target=_serve_in_copy, args=arguments, daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.exitcode

    def end(self) -> None:
        """Wait shortly for it to leave by itself, and kill it."""
        self._process.join(LEAVE_SECONDS)
        self._process.kill()
        self._process.join()


class LocalExecutor:
    """Starts and ends child processes."""

    address = ("127.0.0.1", 0)

    def __init__(self, *, is_fresh: bool) -> None:
        """Start nothing yet; `is_fresh` says that this process has computed nothing and may be copied."""
        self._is_fresh = is_fresh
        self._processes: dict[int, RankProcess] = {}

    def start(self, invitation: Invitation, num_ranks: int) -> None:
        """Start one process a rank."""
        if self._is_fresh and importlib.util.find_spec("numba") is not None:
            import numba  # noqa: F401 - so that the copies need not
        start = CopiedProcess if self._is_fresh else NewProcess
        for rank in range(1, num_ranks):
            self._processes[rank] = start(invitation, rank)

    def failure(self) -> str | None:
        """Name a process that has ended."""
        codes = {rank: process.poll() for rank, process in self._processes.items()}
        return next((f"rank {rank} ended with code {code}" for rank, code in codes.items() if code is not None), None)

    def stop(self) -> None:
        """Wait shortly for processes that leave by themselves, and kill the others."""
        for process in self._processes.values():
            process.end()


def _serve_in_copy(invitation: Invitation, rank: int, parent: int) -> None:
    """Be a rank, with nothing of what the parent has open, and never return."""
    gc.freeze()  # what owned these files must not close others that get their numbers
    os.closerange(FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
    rank_process.leave(rank_process.serve(invitation, rank, parent))
