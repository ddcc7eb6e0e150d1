"""Lines on stderr that say what is being done and how long it took.

Knows the terminal. Does not know what the steps are. Standard library only: it runs before anything is installed.
"""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.launcher.errors import LaunchError

NUM_TAIL_LINES = 12
WIDTH = 100


def say(text: str) -> None:
    """Write one line to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say that a step begins and, when it is done, how many seconds it took."""
    say(f"-> {text}")
    started = time.monotonic()
    yield
    say(f"   done in {time.monotonic() - started:.1f} s")


def run_logged(command: Sequence[str | Path], log: Path, cure: str) -> None:
    """Run a command with its output in `log`, its latest line on the screen where stderr is a terminal.

    Raises:
        LaunchError: the command cannot be run or failed; the end of its output is written to stderr first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=NUM_TAIL_LINES)
    show = _show_on_terminal if sys.stderr.isatty() else _show_nothing
    with log.open("a", encoding="utf-8") as file:
        code = _copy_output([str(part) for part in command], [file.write, tail.append, show])
    show("")
    if code:
        say("".join(tail).rstrip())
        raise LaunchError(f"`{' '.join(map(str, command))}` failed with exit code {code} (all of it: {log})", cure)


def _copy_output(command: list[str], sinks: Sequence[Callable[[str], object]]) -> int:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as child:
        for line in child.stdout or ():
            for sink in sinks:
                sink(line)
    return child.returncode


def _show_on_terminal(line: str) -> None:
    print(f"\r\033[K   {line.strip()[:WIDTH]}" if line else "\r\033[K", end="", file=sys.stderr, flush=True)


def _show_nothing(_line: str) -> None:
    """Leave a log file free of half lines."""
