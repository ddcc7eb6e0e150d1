"""Starts the workers, starts again the ones that die, and passes signals on.

Knows processes. Does not know what a worker does.

Every worker listens at the same TCP port (SO_REUSEPORT), or accepts at the same Unix socket: the kernel spreads
connections over them, and a worker that dies takes only its own along. The first also has the HTTP port. A worker ends
with its supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from gateway.address import BACKLOG, bind_unix, remove_socket, split_address, unix_path
from gateway.config import GatewayConfig
from gateway.log import log
from gateway.workers.levels import SharedLevels
from gateway.workers.seat import Seat, counted_before
from gateway.workers.table import SharedTable

Work = Callable[[GatewayConfig, Seat, Callable[[dict[str, str]], None]], int]
RESTART_SECONDS = 0.5  # at least, between two starts of one worker
POLL_SECONDS = 0.2
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1


class Supervisor:
    """The workers of one gateway."""

    def __init__(self, config: GatewayConfig, work: Work, folder: Path, listener: socket.socket | None = None) -> None:
        """Begin without workers; `work` is what each does until it is told to stop, `listener` a Unix socket of all."""
        self.config = config
        self.table = SharedTable(config.workers)
        self._work = work
        self._folder = folder
        self._listener = listener
        self._levels = SharedLevels()
        self._context = multiprocessing.get_context("fork")
        self._workers: dict[int, ForkProcess] = {}
        self._started_at: dict[int, float] = {}
        self._missing: set[int] = set()  # those that have ended and should run
        self._signals: list[int] = []
        self._is_stopping = False

    def run(self) -> int:
        """Run until a signal; return the exit status."""
        for number in (*SIGNALS, signal.SIGHUP):
            signal.signal(number, lambda received, _frame: self._signals.append(received))
        addresses: dict[str, str] = {}
        for number in range(self.config.workers):
            addresses |= self._start(number)
            if number not in self._workers:
                self._is_stopping = True
                self._pass_on(signal.SIGTERM)
                self._wait()
                return 1
            self.config = self.config.model_copy(update={"http_address": addresses["http"]})
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        while self._workers or (self._missing and not self._is_stopping):
            self._wait()
        return 0

    def _wait(self) -> None:
        """Take one turn: pass on signals, note who has ended, start again who should not have."""
        wait([worker.sentinel for worker in self._workers.values()], timeout=POLL_SECONDS)
        while self._signals:
            number = self._signals.pop(0)
            self._is_stopping |= number in SIGNALS
            self._pass_on(number)
        for number, worker in list(self._workers.items()):
            if worker.is_alive():
                continue
            worker.join()
            del self._workers[number]
            self.table.forget(number)
            self._missing.add(number)
            if not self._is_stopping:
                log("worker_ended", worker=number, status=worker.exitcode)
        if not self._is_stopping:
            self._replace()

    def _replace(self) -> None:
        """Start workers again that have ended; one that cannot start now is tried again later."""
        for number in sorted(self._missing):
            if time.monotonic() >= self._started_at[number] + RESTART_SECONDS and self._start(number):
                self._missing.discard(number)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers.values():
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _start(self, number: int) -> dict[str, str]:
        """Start a worker; return its addresses, empty where it ended instead."""
        receiver, sender = self._context.Pipe(duplex=False)
        before = counted_before(self._folder, number)
        seat = Seat(number, self.table, self._levels, self._folder, self._listener, before)
        worker = self._context.Process(target=_run, args=(self._work, self.config, seat, sender, os.getpid()))
        self._started_at[number] = time.monotonic()
        worker.start()
        sender.close()
        with receiver:
            try:
                addresses: dict[str, str] = receiver.recv()
            except EOFError:
                worker.join()
                return {}
        self._workers[number] = worker
        return addresses


def supervise(config: GatewayConfig, work: Work) -> int:
    """Run a gateway of several workers; return the exit status.

    Raises:
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        if (path := unix_path(config.grpc_address)) is not None:
            with bind_unix(path) as listener:
                listener.listen(BACKLOG)
                status = Supervisor(config, work, Path(folder), listener).run()
            remove_socket(config.grpc_address)
            return status
        with reserve(config.grpc_address) as address:
            return Supervisor(config.model_copy(update={"grpc_address": address}), work, Path(folder)).run()


@contextlib.contextmanager
def reserve(address: str) -> Iterator[str]:
    """Bind a TCP port that several processes may share, without listening; yield the address with its port.

    Raises:
        OSError: somebody who does not share it has it.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        if port:  # a port that is given must not be another gateway's, who would share it too
            holder.bind((host, port))
            holder.close()
        with socket.socket(family, socket.SOCK_STREAM) as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind((host, port))
            yield f"{address.rpartition(':')[0]}:{shared.getsockname()[1]}"


def _run(work: Work, config: GatewayConfig, seat: Seat, sender: Connection, parent: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it listens: it reads the configuration again by itself then
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)

    def announce(addresses: dict[str, str]) -> None:
        sender.send(addresses)
        sender.close()

    sys.exit(work(config, seat, announce))
