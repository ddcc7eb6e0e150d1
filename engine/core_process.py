"""The engine core as a process of its own: commands in, outputs out, over one local socket.

Knows the core and the socket. Does not know Triton. Run as `python -m engine.core_process FD`; the first message on the
socket is the `StartCommand`.

Invariants:
1. One thread reads commands, one compiles guides, one loads adapters, and one steps and writes; they share nothing but
   a queue.
2. The process ends as soon as its parent's end of the socket closes, whatever it is doing.
3. Something is written at least every `IDLE_SECONDS` while the loop turns, so that silence means a hang.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from engine.core import EngineCore
from engine.errors import EngineError, InvalidRequest, QueueFull, RanksFailed, RequestFailed
from engine.guided_options import Guided
from engine.guides import Guide
from engine.lora.adapter_service import AdapterEvent, AdapterInspected, AdapterLoaded, AdapterService, Answer
from engine.lora.lora_linear import LoadedAdapter
from engine.messages import AbortCommand, AdapterCommand, AddCommand, Command, StartCommand, StartFailed, error_output
from engine.outputs import EngineStats, FinishReason, RequestOutput

IDLE_SECONDS = 0.25
STATS_SECONDS = 0.1
NO_REQUEST = 0  # what asks for adapters before there are requests, which count from 1
logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class GuideReady:
    """A guide has been compiled, or refused, and its request can start."""

    request_id: int
    add: AddCommand
    job: Future[Guide]


@dataclass(slots=True, frozen=True)
class Pending:
    """What goes on once its adapter is there; `deadline` as in `Sequence`."""

    start: Callable[[LoadedAdapter], list[RequestOutput]]
    deadline: float | None


Event = Command | GuideReady | AdapterEvent


class CoreLoop:
    """Takes commands from a queue, steps the core while there is work, and sends what comes out."""

    def __init__(
        self,
        core: EngineCore,
        connection: Connection,
        commands: "queue.SimpleQueue[Event]",
        adapters: AdapterService | None = None,
    ) -> None:
        """Take over the writing side of `connection`."""
        self.core = core
        self.connection = connection
        self.commands = commands
        self.stats_sent = 0.0
        self.compiling: set[int] = set()
        self.compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self.pending: dict[int, Pending] = {}
        self.adapters = adapters

    def turn(self) -> None:
        """Handle what has been asked, compute one step if there is work, and report."""
        outputs = self._take_commands()
        if self.core.has_work:
            outputs += self.core.step()
        if self.adapters is not None:
            self._settle(outputs, self.adapters)
        if outputs:
            self.connection.send(outputs)
        self.core.stats.heartbeat += 1
        now = time.monotonic()
        if now - self.stats_sent >= STATS_SECONDS or not self.core.has_work:
            self.connection.send(self.read_stats())
            self.stats_sent = now

    def read_stats(self) -> EngineStats:
        """Return the core's statistics and those of the adapters."""
        stats = self.core.read_stats()
        if self.adapters is not None:
            stats.adapters = tuple(self.adapters.loaded)
            stats.adapter_bytes = self.adapters.pool.num_bytes
            stats.num_adapter_loads = self.adapters.num_loads
            stats.num_pending = len(self.pending)
        return stats

    def _settle(self, outputs: list[RequestOutput], adapters: AdapterService) -> None:
        """End what has waited for an adapter past its deadline, and let adapters go of what has ended."""
        now = time.monotonic()
        for request_id, pending in list(self.pending.items()):
            if pending.deadline is not None and pending.deadline <= now:
                outputs += self._drop(request_id, FinishReason.DEADLINE)
        for output in outputs:  # grows: what gets an adapter now may end at once
            if output.ends_request:
                outputs += self._serve(adapters.release(output.request_id))

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

    def _handle(self, event: Event) -> list[RequestOutput]:
        if isinstance(event, AbortCommand):
            return self._abort(event.request_id)
        if isinstance(event, AdapterInspected | AdapterLoaded):
            return self._serve(self._adapters().handle(event))
        try:
            if isinstance(event, AdapterCommand):
                return self._manage(event)
            if isinstance(event, GuideReady):
                return self._add_guided(event)
            if event.params.guided is not None:
                return self._compile(event, event.params.guided)
            return self._add(event)
        except EngineError as error:
            return [error_output(event.request_id, error)]

    def _add(self, add: AddCommand, guide: Guide | None = None) -> list[RequestOutput]:
        if not add.task.adapter:
            return self._start(add, guide, None)
        waiting = self.core.scheduler.waiting
        if len(self.pending) >= waiting.max_requests:
            raise QueueFull(f"{len(self.pending)} requests wait for adapters", waiting.max_requests)
        start = partial(self._start, add, guide)
        return self._wait(add.request_id, add.task.adapter, Pending(start, add.scheduling.deadline(add.arrived)))

    def _start(self, add: AddCommand, guide: Guide | None, adapter: LoadedAdapter | None) -> list[RequestOutput]:
        where = add.request_id, add.prompt_ids, add.params, add.arrived, add.resume_ids
        return self.core.add(*where, scheduling=add.scheduling, guide=guide, task=add.task, adapter=adapter)

    def _manage(self, command: AdapterCommand) -> list[RequestOutput]:
        adapters = self._adapters()
        if command.name and not command.is_unload:
            return self._wait(command.request_id, command.name, Pending(partial(self._tell, command.request_id), None))
        served = self._serve(adapters.unload(command.name)) if command.name else []
        return served + self._tell(command.request_id)

    def _tell(self, request_id: int, _loaded: LoadedAdapter | None = None) -> list[RequestOutput]:
        text = json.dumps(self._adapters().describe())
        return [RequestOutput(request_id, finish_reason=FinishReason.STOP, adapters=text)]

    def _adapters(self) -> AdapterService:
        if self.adapters is None:
            raise InvalidRequest("this engine serves no adapters; the setting adapters names their folder")
        return self.adapters

    def _wait(self, request_id: int, name: str, pending: Pending) -> list[RequestOutput]:
        adapters = self._adapters()
        self.pending[request_id] = pending
        return self._serve(adapters.ask(request_id, name))

    def _serve(self, answers: list[Answer]) -> list[RequestOutput]:
        """Let those go on who have got their adapter."""
        outputs: list[RequestOutput] = []
        for answer in answers:
            pending = self.pending.pop(answer.user, None)
            if pending is None:  # ended meanwhile, and about to be released
                continue
            try:
                if isinstance(answer.result, EngineError):
                    raise answer.result
                outputs += pending.start(answer.result)
            except EngineError as error:
                outputs.append(error_output(answer.user, error))
        return outputs

    def _abort(self, request_id: int) -> list[RequestOutput]:
        if request_id in self.compiling or request_id in self.pending:
            return self._drop(request_id, FinishReason.CANCELLED)
        return self.core.abort(request_id)

    def _drop(self, request_id: int, reason: FinishReason) -> list[RequestOutput]:
        """End a request that has not started."""
        self.compiling.discard(request_id)
        self.pending.pop(request_id, None)
        return [RequestOutput(request_id, finish_reason=reason)]

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
    start: StartCommand = connection.recv()
    config = start.config
    try:
        core = EngineCore(config, on_rank_loss=_end, is_fresh=True)
    except EngineError as error:
        connection.send(StartFailed(str(error)))
        return 1
    commands: queue.SimpleQueue[Event] = queue.SimpleQueue()
    adapters = None
    if config.adapters is not None:
        targets, placement = core.runner.adapter_targets, core.runner.placement
        adapters = AdapterService(config.adapters, config, targets, commands.put, placement)
        core.prepare_adapters(_load_again(adapters, commands, start.adapters))
    threading.Thread(target=_read, args=(connection, commands), name="commands", daemon=True).start()
    connection.send(core.info)
    loop = CoreLoop(core, connection, commands, adapters)
    try:
        while True:
            loop.turn()
    except RanksFailed as error:
        _end(str(error))
        raise


def _load_again(
    adapters: AdapterService, events: "queue.SimpleQueue[Any]", names: Sequence[str]
) -> list[LoadedAdapter]:
    """Load the adapters that a core before this one had, while nobody else asks; return those that are still there."""
    found: list[LoadedAdapter] = []
    for name in names:
        answers = adapters.ask(NO_REQUEST, name)
        while not answers:
            answers = adapters.handle(events.get())
        adapters.release(NO_REQUEST)
        if isinstance(answers[0].result, EngineError):
            logger.warning("adapter %r, which was there before, is not loaded again: %s", name, answers[0].result)
        else:
            found.append(answers[0].result)
    return found


def _end(reason: str) -> None:
    """End at once: the parent answers all requests and starts the core again."""
    logger.error("the engine core ends: %s", reason)
    os._exit(1)


def _read(connection: Connection, commands: "queue.SimpleQueue[Event]") -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
