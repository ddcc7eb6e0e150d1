"""The engine core as a process of its own: commands in, outputs out, over one local socket.

Knows the core and the socket. Does not know Triton. Run as `python -m engine.core_process FD`; the first message on the
socket is the `EngineConfig`.

Invariants:
1. One thread reads commands and one thread steps and writes; they share nothing but a queue.
2. The process ends as soon as its parent's end of the socket closes, whatever it is doing.
3. Something is written at least every `IDLE_SECONDS` while the loop turns, so that silence means a hang.
"""

import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import EngineError
from engine.messages import AbortCommand, Command, StartFailed, error_output
from engine.outputs import RequestOutput

IDLE_SECONDS = 0.25
STATS_SECONDS = 0.1


class CoreLoop:
    """Takes commands from a queue, steps the core while there is work, and sends what comes out."""

    def __init__(self, core: EngineCore, connection: Connection, commands: "queue.SimpleQueue[Command]") -> None:
        """Take over the writing side of `connection`."""
        self.core = core
        self.connection = connection
        self.commands = commands
        self.stats_sent = 0.0

    def turn(self) -> None:
        """Handle what has been asked, compute one step if there is work, and report."""
        outputs = self._take_commands()
        if self.core.has_work:
            outputs += self.core.step()
        if outputs:
            self.connection.send(outputs)
        self.core.stats.heartbeat += 1
        now = time.monotonic()
        if now - self.stats_sent >= STATS_SECONDS or not self.core.has_work:
            self.connection.send(self.core.read_stats())
            self.stats_sent = now

    def _take_commands(self) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        wait = not self.core.has_work
        try:
            while True:
                command = self.commands.get(block=wait, timeout=IDLE_SECONDS)
                wait = False
                output = self._handle(command)
                if output is not None:
                    outputs.append(output)
        except queue.Empty:
            return outputs

    def _handle(self, command: Command) -> RequestOutput | None:
        if isinstance(command, AbortCommand):
            return self.core.abort(command.request_id)
        try:
            return self.core.add(
                command.request_id,
                command.prompt_ids,
                command.params,
                command.arrived,
                command.resume_ids,
                scheduling=command.scheduling,
            )
        except EngineError as error:
            return error_output(command.request_id, error)


def main() -> int:
    """Serve the connection whose file descriptor is the first argument until the parent goes away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to end, by closing the socket
    connection = Connection(int(sys.argv[1]))
    config: EngineConfig = connection.recv()
    try:
        core = EngineCore(config)
    except EngineError as error:
        connection.send(StartFailed(str(error)))
        return 1
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, commands), name="commands", daemon=True).start()
    connection.send(core.info)
    loop = CoreLoop(core, connection, commands)
    while True:
        loop.turn()


def _read(connection: Connection, commands: "queue.SimpleQueue[Command]") -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
