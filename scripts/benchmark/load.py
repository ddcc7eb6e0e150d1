"""The load generator `load.c` as a process: built with gcc when it is first needed, then told what to do.

Knows its commands and what it answers. Does not know proxies.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done; see `load.c`."""

    mode: str
    streams: int
    rate: float = 0.0  # messages a second on each stream
    connections: int = 8


@dataclass(frozen=True, slots=True)
class Result:
    """What the clients saw."""

    messages: int
    calls: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float


class Generator:
    """Backends and clients on one core."""

    def __init__(self, folder: Path, core: int) -> None:
        """Build and start; the backends listen from now on."""
        program = folder / "load"
        subprocess.run(["gcc", "-O2", "-o", str(program), str(SOURCE)], check=True)
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.backends = [int(port) for port in self._line().split()]

    def run(self, load: Load, port: int, seconds: float, begin: Callable[[], None]) -> Result:
        """Load a proxy; `begin` is called when the warm-up is over."""
        command = f"{load.mode} {port} {load.streams} {load.connections} {load.rate} {seconds}\n"
        os.write(self._input, command.encode())
        if self._line() != "begin":
            raise RuntimeError("the load generator did not begin")
        begin()
        return Result(**json.loads(self._line()))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.communicate()

    @property
    def _input(self) -> int:
        if self._process.stdin is None:
            raise RuntimeError("the load generator has no input")
        return self._process.stdin.fileno()

    def _line(self) -> str:
        if self._process.stdout is None:
            raise RuntimeError("the load generator has no output")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended")
        return line.strip()
