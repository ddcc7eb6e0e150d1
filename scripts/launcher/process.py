"""One child process: how it is started, asked to end, and ended.

Knows a command, an environment, a log file and a launch tag. Does not know what the command does.

Invariants:
1. A child runs in a session of its own, so a Ctrl-C in the terminal reaches the launcher only.
2. A child runs in the project's root: the embedded server's stub ignores PYTHONPATH, and finds our packages there.
3. After `stop` or `kill` no process and no shared-memory region of the child's tag is left.
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scripts.launcher.leftovers import children_of, sweep
from scripts.launcher.paths import ROOT, TAG_ENV

NUM_LOG_BYTES = 20_000
NUM_LOG_LINES = 15
NUM_TROUBLE_LINES = 200
LINE_WIDTH = 400
REFUSAL = re.compile(r"stub: ModelError: (.*?)\\n\\nAt:")
TROUBLE = re.compile(r"failed|Failed|Error: |^error: |Traceback|what\(\)")


class Child:
    """A process with everything it starts in turn."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> None:
        self.name = name
        self.command = list(command)
        self.env = {**env, TAG_ENV: tag}
        self.log = log
        self.tag = tag
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the latest start.

        Raises:
            RuntimeError: it was never started.
        """
        return self._started().pid

    @property
    def exit_code(self) -> int | None:
        """The exit code of the latest start, negative for a signal; None while it runs."""
        return self._started().poll()

    @property
    def is_running(self) -> bool:
        """Whether the latest start is still running."""
        return self._process is not None and self._process.poll() is None

    def parts(self) -> dict[int, bool]:
        """Return the ids of what it has started itself, each with whether that has ended and it did not notice."""
        return children_of(self.pid)

    def start(self) -> None:
        """Start the command, its output appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Ask the process to end; a process that has ended is left alone."""
        if self.is_running:
            self._started().send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> bool:
        """Wait for the process to end and return whether it did."""
        try:
            self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, timeout: float) -> None:
        """Ask the process to end, then remove what is left of it after `timeout` seconds."""
        if self._process is not None:
            self.terminate()
            self.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the process and all it started at once, and remove its shared memory."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        sweep(self.tag)

    def trouble_in_log(self) -> str:
        """Return the latest lines of the log that tell of an error, or its last lines where none does."""
        lines = self.log_tail(NUM_TROUBLE_LINES).splitlines()
        telling = [line[:LINE_WIDTH] for line in lines if TROUBLE.search(line)]
        return "\n".join(telling[-NUM_LOG_LINES:]) or self.log_tail()

    def refusal_in_log(self) -> str | None:
        """Return what the engine says of a model or a setting that it cannot serve, None where it says nothing."""
        found = REFUSAL.search(self.log_tail(NUM_TROUBLE_LINES))
        return found[1] if found else None

    def log_tail(self, num_lines: int = NUM_LOG_LINES) -> str:
        """Return the last lines of the log."""
        if not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - NUM_LOG_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process
