"""The gateway as a whole: listens, watches instances, drains and stops.

Knows how the parts fit together. Does not know how any of them works.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from gateway import compiled
from gateway.address import bound_address, listen, remove_socket, split_address
from gateway.client import ClientLink, Terms
from gateway.config import ConfigError, GatewayConfig, InstanceConfig, TlsConfig
from gateway.dashboard.feed import Feed
from gateway.dashboard.routes import dashboard_routes
from gateway.dashboard.share import share_of, write_share
from gateway.dispatcher import Dispatcher
from gateway.endpoint import Health, Signal
from gateway.fleet import Fleet
from gateway.http_server import HttpServer, make_app
from gateway.instance import Instance
from gateway.kserve_client import KserveClient
from gateway.link import Hub, close_links
from gateway.log import log, log_defect
from gateway.metrics import InstanceFacts, Metrics
from gateway.openai_api import OpenAiApi
from gateway.plain_answers import PlainAnswers
from gateway.reload import keep_bound
from gateway.rounds import Rounds
from gateway.safety.budgets import level_rows
from gateway.tls import RenewableContext, TlsError, renewable, server_context
from gateway.updates import ConfigSource, Updates
from gateway.workers.seat import PUBLISH_SECONDS, Seat
from gateway.workers.table import TableFull

PUBLISH_SHARE = 0.02  # of its time a worker spends on telling the first one its metrics, at most
GC_THRESHOLDS = (20_000, 20, 20)  # each pass walks every open request: fewer passes, 6 % more new streams a second


class Server:
    """One running gateway."""

    def __init__(self, config: GatewayConfig, seat: Seat | None = None) -> None:
        """Build the parts; call within a running loop. `seat` makes it one of several workers."""
        self.config = config
        self.seat = seat
        self.hub = Hub()
        self._loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(config, self.hub, self.metrics, seat)
        self._rounds = Rounds(self.dispatcher, self.hub, self.metrics)
        self.clients: set[ClientLink] = set()
        self.stopping = asyncio.Event()
        self.cut = asyncio.Event()
        self._terms = Terms(config.limits, config.patience, config.max_connections)
        self._tls: RenewableContext | None = None
        if config.tls is not None:
            self._tls = renewable(_context(config.tls))
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[asyncio.Server] = []
        self._reloading: asyncio.Task[None] | None = None
        self._http: HttpServer | None = None
        self._kserve = KserveClient(self.hub, self.dispatcher)
        self._openai: OpenAiApi | None = None
        fleet = Fleet(config, self.dispatcher.instances, self.hub, self._make_instance)
        self.fleet = fleet
        self.updates = Updates(config, (self.dispatcher.prepare, self._prepare), fleet)
        self.metrics.instances = self._facts
        self.metrics.level = lambda: self.dispatcher.router.levels

    async def start(self) -> dict[str, str]:
        """Listen and begin to watch; return the addresses."""
        loop = asyncio.get_running_loop()
        config, seat = self.config, self.seat
        grpc = await listen(
            config.grpc_address,
            self._accept,
            self._tls,
            config.patience.preface_s,
            share_port=seat is not None,
            listener=seat.listener if seat is not None else None,
        )
        self._listeners = [grpc]
        addresses = {"grpc": bound_address(grpc)}
        if self.seat is None or self.seat.is_first:
            addresses["http"] = await self._start_http()
        self.updates.start()
        self._tasks.append(loop.create_task(self._watch_links()))
        self._tasks.append(loop.create_task(self._tick()))
        if self.seat is not None:
            self._tasks.append(loop.create_task(self._keep_seat(self.seat)))
        if self.config.observe.journal is not None and (seat is None or seat.is_first):
            self._tasks.append(loop.create_task(self._snapshots(self.config.observe.journal.snapshot_interval_s)))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        return addresses

    async def _start_http(self) -> str:
        self._openai = OpenAiApi(self._kserve, self.dispatcher.guard, self.config.openai, self.metrics.http_answers)
        others = dict[int, bytes] if self.seat is None else self.seat.shares
        feed = Feed(self.dispatcher, self.metrics, self.stopping.is_set, others)
        self._tasks.append(asyncio.get_running_loop().create_task(feed.run()))
        routes = [*self._openai.routes(), *dashboard_routes(feed)]
        plain = PlainAnswers(self.dispatcher, self.metrics, self.seat, self.stopping.is_set)
        self._http = HttpServer(
            *split_address(self.config.http_address), make_app(plain.answer, routes), self.config.max_connections
        )
        self._http.start().add_done_callback(self._task_ended)
        return self._http.address

    def _prepare(self, config: GatewayConfig) -> Callable[[], None]:
        """Return what has connections to come made as another configuration says.

        Raises:
            TlsError: its files cannot be used.
        """
        context = _context(config.tls) if config.tls is not None and config.tls != self.config.tls else None

        def commit() -> None:
            self.config = config
            self._terms = Terms(config.limits, config.patience, config.max_connections)
            for client in (*self.clients, *self._kserve.links):
                client.forget_call()
            if context is not None and self._tls is not None:
                self._tls.current = context
            if self._http is not None:
                self._http.limit(config.max_connections)
            if self._openai is not None:
                self._openai.config = config.openai

        return commit

    def add_task(self, work: Coroutine[None, None, None]) -> None:
        """Run something until the gateway stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def hang_up(self, source: ConfigSource) -> None:
        """Read the configuration again."""
        self._reloading = asyncio.get_running_loop().create_task(self.updates.reload_aside(source))

    def request_stop(self) -> None:
        """Drain; asked a second time, cut."""
        if self.stopping.is_set():
            self.cut.set()
        self.stopping.set()

    async def run_until_stopped(self) -> None:
        """Wait for the request to stop, drain and close everything."""
        await self.stopping.wait()
        await self._drain()
        for task in self._tasks:
            task.cancel()
        await close_links([*self.clients, *self._kserve.links], self.hub)
        if self._http is not None:
            await self._http.stop()
        await self.updates.close()
        await self.fleet.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.seat is None:
            remove_socket(self.config.grpc_address)
        self._snapshot()
        await asyncio.to_thread(self.dispatcher.observation.close)

    async def _snapshots(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._snapshot()

    def _snapshot(self) -> None:
        """Put the metrics, of all workers where there are several, and what tenants have left into the journal."""
        if self.seat is None:
            families = self.metrics.registry.collect()
        elif self.seat.is_first:
            families = text_string_to_metric_families(self.seat.render(self.metrics.render()).decode())
        else:
            return
        now, tenants = asyncio.get_running_loop().time(), self.dispatcher.guard.tenants.values()
        self.dispatcher.observation.snapshot(families, level_rows(tenants, now, time.time_ns()))

    async def _drain(self) -> None:
        log("draining", clients=len(self.clients))
        for listener in self._listeners:
            listener.close()
        for client in list(self.clients):
            client.drain()
        if self._openai is not None:
            self._openai.drain()
        self.hub.flush()
        cut = asyncio.ensure_future(self.cut.wait())
        drained = asyncio.ensure_future(self._all_gone())
        await asyncio.wait({cut, drained}, timeout=self.config.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        drained.cancel()
        log("stopped", clients=len(self.clients))

    async def _all_gone(self) -> None:
        while self.clients or (self._openai is not None and self._openai.num_open):
            await asyncio.sleep(0.02)

    async def _watch_links(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            patiences = [self.config.patience, *(instance.patience for instance in self.config.instances)]
            await asyncio.sleep(min(patience.interval for patience in patiences))
            now = loop.time()
            for client in list(self.clients):
                client.watch(now)
            for instance in self.dispatcher.instances.values():
                instance.pool.watch(now)
            self.hub.flush()

    async def _keep_seat(self, seat: Seat) -> None:
        """Tell the first worker this one's figures, and drain what another was told to."""
        while True:
            took = await asyncio.to_thread(self._publish, seat)
            for instance in self.dispatcher.instances.values():
                row = instance.load.row
                if row is not None and row.is_draining != (instance.endpoint.health is Health.DRAINING):
                    instance.signal(Signal.DRAIN if row.is_draining else Signal.RESUME, "another worker was asked")
            await asyncio.sleep(max(PUBLISH_SECONDS, took / PUBLISH_SHARE))

    def _publish(self, seat: Seat) -> float:
        """Tell the first worker the figures; return the seconds of CPU that it took."""
        began = time.thread_time()
        seat.publish(self.metrics.render(), write_share(share_of(self.dispatcher, self.metrics)))
        return time.thread_time() - began

    def _accept(self) -> ClientLink:
        return ClientLink(self.hub, self.dispatcher, self.clients, self._terms)

    def _make_instance(self, config: InstanceConfig) -> Instance:
        clock, changed = asyncio.get_running_loop().time, self.dispatcher.instances_changed
        instance = Instance(config, self.hub, self.metrics, clock, changed)
        instance.judge_by(self.updates.config)
        if self.seat is not None:
            instance.load.row = self.seat.table.row(instance.name, self.seat.number)
        return instance

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._rounds.pause)
            self._rounds.go()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log("task_failed", error=repr(error))
        if not self.stopping.is_set():
            self.request_stop()

    def _facts(self) -> list[InstanceFacts]:
        """Return what the metrics tell of instances; asked by the thread that renders them."""
        now = self._loop.time()
        return [
            (i.name, i.load.in_flight, i.endpoint.is_usable, i.load.total(now), i.pool.tally)
            for i in list(self.dispatcher.instances.values())
        ]


async def serve(
    config: GatewayConfig,
    source: ConfigSource | None = None,
    seat: Seat | None = None,
    announce: Callable[[dict[str, str]], None] | None = None,
) -> None:
    """Run a gateway until SIGTERM or SIGINT; tell `announce`, or else stdout as one JSON line, where it listens.

    With a `source` the configuration is read again on SIGHUP and whenever its file changes.
    """
    server = Server(config, seat)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    addresses = await server.start()
    if source is not None:
        loop.add_signal_handler(signal.SIGHUP, server.hang_up, source)
        if source.path is not None:
            server.add_task(server.updates.watch_config(source, source.path))
        if seat is not None:  # perhaps the successor of a worker that had read a newer one
            server.updates.reload(source)
    gc.freeze()  # what is there now stays; what comes later dies young, or by its count of references
    gc.set_threshold(*GC_THRESHOLDS)
    (announce or _print_addresses)(addresses)
    log("listening", **addresses, wire=compiled.mode(), instances=[instance.name for instance in config.instances])
    await server.run_until_stopped()


def work(
    given: GatewayConfig,
    source: ConfigSource,
    config: GatewayConfig,
    seat: Seat,
    announce: Callable[[dict[str, str]], None],
) -> int:
    """Run one of several workers with `config`, which is `given` with the addresses bound; return its exit status."""
    own_source = ConfigSource(keep_bound(source.read, given, config), source.path)
    try:
        uvloop.run(serve(config, own_source, seat, announce))
    except (OSError, ConfigError, TlsError, TableFull) as error:
        sys.stderr.write(f"worker {seat.number} cannot start: {error}\n")
        return 1
    return 0


def _context(config: TlsConfig) -> ssl.SSLContext:
    return server_context(config.certificate, config.key, config.client_ca)


def _print_addresses(addresses: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(addresses) + "\n")
    sys.stdout.flush()


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log_defect("unhandled", context.get("exception"), message=context.get("message"))
