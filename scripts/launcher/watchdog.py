"""A small process that cleans up when its launcher dies without doing so.

Knows a tag and one end of a pipe. Does not know what was launched. Standard library only.

The launcher holds the other end of the pipe, which the kernel closes however the launcher ends. A launcher that has
cleaned up says so first; on a silent end the watchdog removes every process and region of the tag.
"""

import signal
import subprocess
import sys
from pathlib import Path

ALL_CLEAN = b"clean"


class Watchdog:
    """The launcher's side: starts the process, and tells it when there is nothing to clean up."""

    def __init__(self, tag: str) -> None:
        """Start watching this process for the tag."""
        self._process = subprocess.Popen(
            [sys.executable, "-E", "-S", str(Path(__file__).resolve()), tag],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The watching process."""
        return self._process.pid

    def dismiss(self) -> None:
        """Say that everything is clean, and wait for the watchdog to go."""
        try:
            self._process.communicate(ALL_CLEAN)
        except BrokenPipeError:
            self._process.wait()


def main(tag: str) -> None:
    """Wait for the launcher's end, then sweep unless it said that all is clean."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == ALL_CLEAN:
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from scripts.launcher.leftovers import sweep

    sweep(tag)


if __name__ == "__main__":
    main(sys.argv[1])
