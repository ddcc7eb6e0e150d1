"""One instance as the gateway holds it: health, load and connections together.

Knows the parts and passes signals between them. Does not know routing or clients.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.abort import send_abort
from gateway.address import authority
from gateway.config import GatewayConfig, InstanceConfig
from gateway.endpoint import Endpoint, Health, Signal
from gateway.link import Hub
from gateway.loads import Load, Report
from gateway.log import log
from gateway.metrics import Metrics
from gateway.routing.candidates import Candidate
from gateway.status import Code, Failure
from gateway.tls import client_context
from gateway.upstream import Pool, Route, lose_all
from gateway.wire.faults import ErrorCode

HEARTBEAT_MODELS = frozenset({"preprocessing", "llm_engine", "postprocessing"})
MAX_LEFT_BEHIND = 1024  # keys; of more requests whose connection broke the oldest run to their end unread


def make_route(config: InstanceConfig) -> Route:
    """Return how an instance is reached.

    Raises:
        TlsError: a certificate or key cannot be used.
    """
    if config.tls is None:
        return Route(config.grpc, config.patience)
    context = client_context(config.tls.ca, config.tls.certificate, config.tls.key)
    return Route(config.grpc, config.patience, context, config.tls.server_name)


class Instance:
    """A tritonserver behind the gateway."""

    def __init__(
        self,
        config: InstanceConfig,
        hub: Hub,
        metrics: Metrics,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        """Begin as STARTING; `changed` is called whenever more or fewer instances may be usable."""
        self.config = config
        self.name = config.name
        self.authority = authority(config.grpc).encode()
        self.endpoint = Endpoint(
            self.name, pool=config.pool, group=config.group, expected_beats=HEARTBEAT_MODELS, worked_at=clock()
        )
        self.load = Load()
        self.candidate = Candidate(self.endpoint, self.load, 0.0)
        self.pool = Pool(hub, self.name, make_route(config), self._connection_failed)
        self.scheme = self.pool.route.scheme  # what stands in `:scheme` of calls there
        self.report: Report | None = None
        self.doubt = ""  # why it has failed last, until it is ready
        self.in_doubt = asyncio.Event()  # while somebody is to ask whether it is ready
        self.in_doubt.set()
        self._left_behind: deque[str] = deque(maxlen=MAX_LEFT_BEHIND)
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._changed = changed

    def judge_by(self, config: GatewayConfig) -> None:
        """Take the limits that its health is judged by."""
        self.endpoint.heartbeat_timeout = config.heartbeat_timeout_s
        self.endpoint.stall_timeout = config.stall_timeout_s
        self.endpoint.slow_start = config.routing.slow_start_s

    def signal(self, signal: Signal, reason: str) -> None:
        """Change the health, say so, and cut every stream of an instance that is dead."""
        before, self.doubt = self.doubt, reason if signal is Signal.FAILED else ""
        if self.endpoint.signal(signal, self._clock()):
            self._note_change(reason)
        elif self.doubt not in {"", before}:
            log("not_ready", instance=self.name, reason=reason)

    def leave_behind(self, key: str) -> None:
        """Have a request aborted whose connection broke: the engine may still be at it, once it can be told."""
        self._left_behind.append(key)
        if self.endpoint.health is Health.READY:
            self._abort_left_behind()

    def _abort_left_behind(self) -> None:
        while self._left_behind:
            send_abort(self, self._left_behind.popleft(), repeat=False)

    def unavailable(self) -> None:
        """Take an answer of UNAVAILABLE."""
        if self.endpoint.unavailable(self._clock()):
            self._note_change("it answers UNAVAILABLE")

    def take_report(self, report: Report) -> None:
        """Take what a read of its metrics said."""
        now = self._clock()
        self.report = report
        was_usable = self.endpoint.is_usable
        self.endpoint.engine_up = report.engine_up
        self.endpoint.report_beats(report.beats, now)
        self.endpoint.report_work(report.work, is_busy=report.waiting + report.running > 0, now=now)
        self.load.report(report, now)
        if self.endpoint.is_usable != was_usable:
            log("engine_up" if self.endpoint.is_usable else "engine_down", instance=self.name)
            self._changed()

    def check_beats(self) -> None:
        """Judge the heartbeats."""
        now = self._clock()
        reason = self.endpoint.standstill(now)
        if self.endpoint.check_beats(now):
            self._note_change(reason or "its heartbeat moves")
        elif self.endpoint.health is Health.DRAINING and self.endpoint.beats and reason:
            self.cut(reason)

    def cut(self, reason: str, is_death: bool = True) -> None:
        """End every stream there at once; `is_death` says whether the instance itself has ended."""
        failure = Failure(Code.UNAVAILABLE, f"instance {self.name}: {reason}", is_answer=False, is_death=is_death)
        lose_all(self.pool.streams(), failure, ErrorCode.CANCEL)
        self._hub.flush()

    def facts(self) -> dict[str, object]:
        """Return what a person wants to see."""
        return {
            "name": self.name,
            "health": self.endpoint.health.name.lower(),
            "usable": self.endpoint.is_usable,
            "doubt": self.doubt or None,
            "engine_up": self.endpoint.engine_up,
            "outlier": self.endpoint.outlier or None,
            "in_flight": self.load.in_flight_everywhere,
            "load": round(self.load.total(self._clock()), 2),
            "waiting": self.report.waiting if self.report is not None else None,
            "running": self.report.running if self.report is not None else None,
            "kv_usage": self.report.kv_usage if self.report is not None else None,
        }

    def _connection_failed(self, reason: str) -> None:
        self.signal(Signal.FAILED, reason)

    def _note_change(self, reason: str) -> None:
        health = self.endpoint.health
        log("health", instance=self.name, health=health.name.lower(), reason=reason)
        if health in {Health.STARTING, Health.SUSPECT}:
            self.in_doubt.set()
        else:
            self.in_doubt.clear()
        if health in {Health.SUSPECT, Health.DEAD}:
            self._metrics.ejections.labels(self.name, health.name.lower()).inc()
        if health is Health.DEAD:
            self.cut(reason)
        elif health is Health.READY:
            self._abort_left_behind()
            self._hub.flush()
        self._changed()
