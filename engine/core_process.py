"""The engine core as a process of its own: commands in, outputs out, over one local socket.

Knows the core and the socket. Does not know Triton. Run as `python -m engine.core_process FD`; the first message on the
socket is the `EngineConfig`.

Invariants:
1. One thread reads commands, one compiles guides, and one steps and writes; they share nothing but a queue.
2. The process ends as soon as its parent's end of the socket closes, whatever it is doing.
3. Something is written at least every `IDLE_SECONDS` while the loop turns, so that silence means a hang.
"""

import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import EngineError, QueueFull, RequestFailed
from engine.guided_options import Guided
from engine.guides import Guide
from engine.messages import AbortCommand, AddCommand, Command, StartFailed, error_output
from engine.outputs import FinishReason, RequestOutput

IDLE_SECONDS = 0.25
STATS_SECONDS = 0.1


@dataclass(slots=True, frozen=True)
class GuideReady:
    """A guide has been compiled, or refused, and its request can start."""

    request_id: int
    add: AddCommand
    job: Future[Guide]


class CoreLoop:
    """Takes commands from a queue, steps the core while there is work, and sends what comes out."""

    def __init__(
        self, core: EngineCore, connection: Connection, commands: "queue.SimpleQueue[Command | GuideReady]"
    ) -> None:
        """Take over the writing side of `connection`."""
        self.core = core
        self.connection = connection
        self.commands = commands
        self.stats_sent = 0.0
        self.compiling: set[int] = set()
        self.compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")

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
                outputs += self._handle(command)
        except queue.Empty:
            return outputs

    def _handle(self, command: Command | GuideReady) -> list[RequestOutput]:
        if isinstance(command, AbortCommand):
            return self._abort(command.request_id)
        try:
            if isinstance(command, GuideReady):
                return self._add_guided(command)
            if command.params.guided is not None:
                return self._compile(command, command.params.guided)
            return self._add(command)
        except EngineError as error:
            return [error_output(command.request_id, error)]

    def _add(self, add: AddCommand, guide: Guide | None = None) -> list[RequestOutput]:
        where = add.request_id, add.prompt_ids, add.params, add.arrived, add.resume_ids
        return self.core.add(*where, scheduling=add.scheduling, guide=guide)

    def _abort(self, request_id: int) -> list[RequestOutput]:
        if request_id in self.compiling:
            self.compiling.remove(request_id)
            return [RequestOutput(request_id, finish_reason=FinishReason.CANCELLED)]
        return self.core.abort(request_id)

    def _compile(self, command: AddCommand, guided: Guided) -> list[RequestOutput]:
        """Compile a request's guide beside the step loop; it comes back as a command."""
        waiting = self.core.scheduler.waiting
        if len(self.compiling) >= waiting.max_requests:
            raise QueueFull(f"{len(self.compiling)} guides are being compiled", waiting.max_requests)
        self.compiling.add(command.request_id)
        job = self.compiler.submit(self.core.guides.make, guided)
        job.add_done_callback(lambda done: self.commands.put(GuideReady(command.request_id, command, done)))
        return []

    def _add_guided(self, ready: GuideReady) -> list[RequestOutput]:
        if ready.request_id not in self.compiling:  # aborted meanwhile
            return []
        self.compiling.remove(ready.request_id)
        error = ready.job.exception()
        if error is not None and not isinstance(error, EngineError):  # even a panic of the library fails this one only
            raise RequestFailed(f"the guide could not be compiled: {error!r}")
        return self._add(ready.add, ready.job.result())


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
    commands: queue.SimpleQueue[Command | GuideReady] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, commands), name="commands", daemon=True).start()
    connection.send(core.info)
    loop = CoreLoop(core, connection, commands)
    while True:
        loop.turn()


def _read(connection: Connection, commands: "queue.SimpleQueue[Command | GuideReady]") -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
