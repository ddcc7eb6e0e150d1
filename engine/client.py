"""The parent's side of the engine core: starts it, feeds it, watches it, and starts it again when it dies.

Knows processes, the socket and open request ids. Does not know tensors (it never imports torch) or Triton.

Invariants:
1. Every id that `submit` returned gets exactly one output with a finish reason, also when the core dies.
2. `on_outputs` runs on one thread only, the reader, and never while the lock is held.
3. After `close` returns no process is left.
"""

import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import EngineUnavailable, ModelError
from engine.messages import (
    AbortCommand,
    AdapterCommand,
    AddCommand,
    Command,
    Message,
    ModelInfo,
    StartCommand,
    StartFailed,
    error_output,
)
from engine.outputs import EngineStats, RequestOutput
from engine.request_check import check_request
from engine.sampling_params import SamplingParams
from engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from engine.task_params import DEFAULT_TASK, TaskParams

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.5
CLOSE_SECONDS = 5.0
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
CORE_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "20000",  # some 50 us: longer spinning starves tritonserver on shared cores
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # so that the tensors of one step reuse the memory of the last,
    "MALLOC_TRIM_THRESHOLD_": str(2**30),  # whose pages are mapped already
}
logger = logging.getLogger(__name__)


class EngineClient:
    """Runs one engine core process."""

    def __init__(self, config: EngineConfig, on_outputs: Callable[[list[RequestOutput]], None]) -> None:
        """Prepare; nothing runs before `start`."""
        self.config = config
        self.stats = EngineStats()
        self._on_outputs = on_outputs
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._closing = threading.Event()
        self._is_up = False
        self._info: ModelInfo | None = None
        self._adapters: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._reader = threading.Thread(target=self._run, name="engine-client", daemon=True)

    @property
    def is_up(self) -> bool:
        """Whether the core takes requests now."""
        return self._is_up

    @property
    def pid(self) -> int | None:
        """Process id of the core, None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def info(self) -> ModelInfo:
        """Facts about the served model.

        Raises:
            EngineUnavailable: the core has not started yet.
        """
        if self._info is None:
            raise EngineUnavailable("the engine core has not started yet")
        return self._info

    def start(self) -> None:
        """Start the core and wait until it takes requests.

        Raises:
            ModelError: the core refuses the model or its configuration.
            EngineUnavailable: the core died while starting.
        """
        self._spawn()
        self._reader.start()

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        arrived: float,
        resume_ids: tuple[int, ...] = (),
        *,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
        task: TaskParams = DEFAULT_TASK,
    ) -> int:
        """Hand a request to the core and return its id; outputs may arrive before this returns.

        Where `resume_ids` are given, only what follows them is put out.

        Raises:
            InvalidRequest: the request can never be served.
            EngineUnavailable: the core is down; it is being started again.
        """
        check_request(prompt_ids, params, self.info, resume_ids, task)
        return self._send(
            lambda request_id: AddCommand(request_id, prompt_ids, params, arrived, resume_ids, scheduling, task)
        )

    def manage_adapter(self, name: str = "", *, is_unload: bool = False) -> int:
        """Load or unload an adapter or, without a name, ask which there are; return the id of the answer's output.

        Raises:
            EngineUnavailable: the core is down; it is being started again.
        """
        return self._send(lambda request_id: AdapterCommand(request_id, name, is_unload))

    def _send(self, make: Callable[[int], Command]) -> int:
        """Send a command that one output or more will answer."""
        with self._lock:
            if not self._is_up or self._connection is None:
                raise EngineUnavailable("the engine core is restarting; try again or use another instance")
            request_id = next(self._ids)
            try:
                self._connection.send(make(request_id))
            except OSError:
                raise EngineUnavailable("the engine core has just died; it is being restarted") from None
            self._open.add(request_id)
        return request_id

    def abort(self, request_id: int) -> None:
        """Ask the core to end a request; its last output follows unless it has ended already."""
        with self._lock:
            if request_id in self._open and self._connection is not None:
                try:
                    self._connection.send(AbortCommand(request_id))
                except OSError:
                    logger.warning("abort of request %d met a dead core", request_id)

    def close(self) -> None:
        """End the core and every open request."""
        self._closing.set()
        self._stop_process()
        if self._reader.is_alive():
            self._reader.join(CLOSE_SECONDS)

    def _run(self) -> None:
        """Read until told to close; a dead core is buried and replaced."""
        while not self._closing.is_set():
            if self._is_up:
                self._read_until_silence()
                self._bury()
            self._restart()
        self._bury()

    def _restart(self) -> None:
        for delay in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
            if self._closing.wait(delay):
                return
            try:
                self._spawn()
            except (ModelError, EngineUnavailable) as error:
                logger.error("the engine core did not start again: %s", error)
            else:
                logger.warning("the engine core runs again, pid %s", self.pid)
                return

    def _read_until_silence(self) -> None:
        assert self._connection is not None
        last_message = time.monotonic()
        try:
            while True:
                if self._connection.poll(POLL_SECONDS):
                    self._receive(self._connection.recv())
                    last_message = time.monotonic()
                elif time.monotonic() - last_message > self.config.watchdog_seconds:
                    logger.error("the engine core has been silent for %g s", self.config.watchdog_seconds)
                    return
        except (EOFError, OSError):
            return

    def _receive(self, message: Message) -> None:
        if isinstance(message, EngineStats):
            self.stats = message
        elif isinstance(message, list):
            with self._lock:
                self._open.difference_update(o.request_id for o in message if o.ends_request)
            self._on_outputs(message)

    def _bury(self) -> None:
        """Take the core off the books and end its requests with an error."""
        self._is_up = False
        self._stop_process()  # before asking for the lock: who sends to a hung core holds it
        with self._lock:
            lost, self._open = sorted(self._open), set()
        code = self._process.returncode if self._process is not None else None
        if not self._closing.is_set():
            logger.error("the engine core ended with code %s; %d requests were open", code, len(lost))
        if lost:
            what = "is being shut down" if self._closing.is_set() else f"ended unexpectedly (exit code {code})"
            error = EngineUnavailable(f"the engine core {what} while the request was running")
            self._on_outputs([error_output(request_id, error) for request_id in lost])
        self._adapters, self.stats = self.stats.adapters, EngineStats()

    def _spawn(self) -> None:
        adapters, self._adapters = self._adapters, ()  # only once: where one of them ends the core, it starts without
        ours, theirs = socket.socketpair()
        with theirs:
            command = [_python(), "-m", "engine.core_process", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=CORE_ENVIRONMENT | os.environ,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        if self._closing.is_set():  # `close` may have come before there was this process to stop
            self._stop_process()
        self._connection = Connection(ours.detach())
        try:
            self._connection.send(StartCommand(self.config, adapters))
            message: Message = self._connection.recv()
        except (EOFError, OSError):
            self._stop_process()
            raise EngineUnavailable(f"the engine core ended at start, code {self._process.returncode}") from None
        if isinstance(message, StartFailed):
            self._stop_process()
            raise ModelError(message.message)
        assert isinstance(message, ModelInfo)
        with self._lock:
            self._info = message
            self._is_up = True

    def _stop_process(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.kill()  # it holds nothing but memory
        self._process.wait()


def _python() -> str:
    """Return the interpreter to run the core with; inside Triton's stub `sys.executable` is not one."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    found = shutil.which("python3", path=os.environ.get("PATH"))
    if found is None:
        raise EngineUnavailable("no python3 on PATH to run the engine core with")
    return found
