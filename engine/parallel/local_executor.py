"""Ranks as processes beside the engine core.

Knows processes. Does not know what ranks do. They end with their parent, whatever state either is in: see
`engine.parallel.rank_process`.
"""

import os
import subprocess
import sys
from pathlib import Path

from engine.parallel.executor import KEY_VARIABLE, Invitation

ROOT = Path(__file__).resolve().parents[2]
LEAVE_SECONDS = 2.0


class LocalExecutor:
    """Starts and ends child processes."""

    address = ("127.0.0.1", 0)

    def __init__(self) -> None:
        """Start nothing yet."""
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1 and on."""
        return [process.pid for process in self._processes.values()]

    def start(self, invitation: Invitation, num_ranks: int) -> None:
        """Start one process a rank; the key goes by the environment, which other users cannot read."""
        where = invitation.host, str(invitation.port)
        for rank in range(1, num_ranks):
            self._processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "engine.parallel.rank_process", *where, str(rank), str(os.getpid())],
                cwd=ROOT,
                env=os.environ | {KEY_VARIABLE: invitation.key.hex()},
                stdin=subprocess.DEVNULL,
            )

    def failure(self) -> str | None:
        """Name a process that has ended."""
        codes = {rank: process.poll() for rank, process in self._processes.items()}
        return next((f"rank {rank} ended with code {code}" for rank, code in codes.items() if code is not None), None)

    def stop(self) -> None:
        """Wait shortly for processes that leave by themselves, and kill the others."""
        for process in self._processes.values():
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
