"""Places requests: on the instance that routing picks, in line while none is usable, elsewhere after a failure.

Knows requests and instances. Does not know frames.

Invariants:
1. A request is in line, at one instance, or done.
2. Every request that was submitted is concluded exactly once: succeeded, failed or cancelled.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gateway.abort import send_abort
from gateway.entrance import Entrance, make_screening
from gateway.facts import engine_facts
from gateway.hedges import Hedges
from gateway.log import log
from gateway.observe.observation import Observation
from gateway.request import Request
from gateway.request_facts import PLAIN, describe
from gateway.request_stages import DONE, END, RETRY, SENT, WAITING
from gateway.routing.asked import Asked
from gateway.routing.router import Router
from gateway.safety.gate import Gate
from gateway.safety.guard import Guard
from gateway.status import Code, Failure
from gateway.tape import NotResumable, Tape
from gateway.wire.faults import ErrorCode
from gateway.wire.stream import CLOSED

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.exchange import Exchange
    from gateway.instance import Instance
    from gateway.link import Hub
    from gateway.metrics import Metrics
    from gateway.safety.config import SafetyConfig
    from gateway.wire.headers import Headers
    from gateway.workers.seat import Seat

RETRY_DELAY = 0.25  # seconds, before an instance that has failed a request gets it again


class Dispatcher:
    """Where every request of every client passes."""

    def __init__(self, config: GatewayConfig, hub: Hub, metrics: Metrics, seat: Seat | None = None) -> None:
        """Begin without instances.

        Raises:
            ConfigError: the hook of the content rules cannot be made.
        """
        self.instances: dict[str, Instance] = {}
        self._use(config)
        self._hub = hub
        self._flush = hub.flush  # to be handed on: Cython makes no bound method of a typed attribute's
        self._seat = seat
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._line: dict[Request, asyncio.TimerHandle] = {}
        self.router = Router(config.routing, random.Random())  # noqa: S311 - decides ties, nothing secret
        self.observation = Observation(config.observe, metrics.registry)
        self.guard = Guard(config.safety, self._clock(), seat)
        self.guard.restore(self.observation.saved_levels, self._clock(), time.time_ns())
        self._gate = Gate(config.safety, self._place, self._fail, hub.flush, seat) if self.guard.tenants else None
        admit = self._place if self._gate is None else self._gate.submit
        self._entrance = Entrance(config.safety, admit, self._fail, hub.flush)
        self._hedges = Hedges(
            config.hedging,
            self._choose,
            observation=self.observation,
            metrics=metrics,
            hub=hub,
            late=self._note_seconds,
        )
        self._keys = f"{secrets.token_hex(8)}-"
        self._num_keys = 0

    @property
    def num_in_line(self) -> int:
        """Requests for which no instance is usable."""
        return len(self._line)

    @property
    def num_waiting(self) -> int:
        """Requests that no instance has yet: held back by limits, or in line for a usable one."""
        return len(self._line) + (len(self._gate.admission.waiting) if self._gate is not None else 0)

    # -- from clients -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a new request."""
        if self.observation.journal is not None:
            request.concurrent = 1 + sum([instance.load.in_flight_everywhere for instance in self.instances.values()])
        call = request.exchange.call
        if self.observation.watches_some or call.tenant is not None or call.wants_ledger:
            self.observation.arrived(request)
        self._entrance.take(request)

    def cancelled(self, request: Request) -> None:
        """End a request that its client no longer wants, at its instance too."""
        self._leave_line(request)
        self._hedges.settle(request)
        instance, was_sent = request.instance, request.stage == SENT
        request.detach(ErrorCode.CANCEL)
        request.step(END)
        self._ended(request, instance.name if instance is not None else "", "cancelled")
        if instance is None:
            return
        if request.key:
            self._metrics.aborts.labels(instance.name).inc()
            send_abort(instance, request.copy_key, repeat=was_sent)

    def cut_short(self, request: Request, failure: Failure | None = None) -> None:
        """Conclude a request of whose answer nothing more may follow, for the client as if it were whole or failed."""
        instance, stream = request.instance, request.stream
        code = None if stream is None or stream.state == CLOSED else ErrorCode.CANCEL
        if failure is None:
            self._conclude(request, "filtered", code)
            request.exchange.succeeded(request, ())
        else:
            self._fail(request, failure, code)
        if instance is not None:
            send_abort(instance, request.copy_key, repeat=False)

    def when_judged(self, request: Request, then: Callable[[], None]) -> None:
        """Do something behind all of a request's answer: at once, where no judge has a say."""
        if request.screen is None or request.screen.hearing is None:
            then()
        else:
            request.screen.hearing.conclude(then)

    def exchange_ended(self, exchange: Exchange) -> None:
        """Count a call that has ended."""
        self._metrics.calls.count((exchange.call.method, exchange.outcome))

    def delivered(self, num_messages: int, num_bytes: int) -> None:
        """Count what went to a client outside the express lane."""
        self._metrics.slow.messages += num_messages
        self._metrics.slow.num_bytes += num_bytes

    # -- from instances -----------------------------------------------------------------------------------------------

    def first_answer(self, request: Request) -> None:
        """Note the first response to a request."""
        if self._hedges.is_used:
            self._hedges.answered(request)
        if self.router.outliers is not None:
            self._note_seconds(request)
        if request.instance is not None and request.instance.endpoint.num_unavailable:
            request.instance.endpoint.answered()
        link = request.link
        if request.exchange.call.is_routed and not request.continuation and link is not None:
            self._metrics.ttft.observe(link.connection.now - request.arrived_at)

    def succeeded(self, request: Request, trailers: Headers, code: int | None) -> None:
        """Conclude a request that its instance finished well; `code` resets what is left of its stream."""
        if request.instance is not None and request.instance.endpoint.num_unavailable:
            request.instance.endpoint.answered()
        if request.screen is not None and request.screen.hearing is not None:
            request.screen.hearing.conclude(partial(self._finish, request, trailers, code))
        else:
            self._finish(request, trailers, code)

    def _finish(self, request: Request, trailers: Headers, code: int | None) -> None:
        self._conclude(request, "ok", code)
        request.exchange.succeeded(request, trailers)

    def attempt_failed(self, request: Request, failure: Failure, code: int | None = None) -> None:
        """Try a request again, if nothing has been answered, or conclude it; `code` resets its stream."""
        if request.stage == DONE:
            return
        instance = request.instance
        if failure.is_answer and failure.is_instances_own and instance is not None:
            self.router.failed(instance.name, self._clock())
        if failure.code is Code.UNAVAILABLE and failure.is_answer and instance is not None:
            instance.unavailable()
        if request.instance is not instance:
            return  # ending the instance's streams has already moved this one on
        if not failure.is_answer and instance is not None and request.copy_key:
            instance.leave_behind(request.copy_key)
        self._go_on(request, failure, code)

    def _go_on(self, request: Request, failure: Failure, code: int | None) -> None:
        """Have a request that has failed go on as its second copy or elsewhere, if it may, or conclude it."""
        if failure.is_death and request.stage == SENT:
            request.deaths += 1
        if failure.is_retryable and self._hedges.take_over(request, code):
            return
        if request.deaths > self.config.max_deaths:
            self._fail(request, _deadly(failure, request), code)
        elif failure.is_retryable and request.can_retry and request.attempts <= self.config.max_retries:
            self._retry(request, failure, code)
        elif failure.is_retryable and request.can_resume:
            self._resume(request, failure, code)
        else:
            self._fail(request, failure, code)

    def prepare(self, config: GatewayConfig) -> Callable[[], None]:
        """Return what puts another configuration in force.

        Raises:
            TableFull: workers share no more memory for the new tenants.
            ConfigError: the hook of the content rules cannot be made.
        """
        commit_safety = self._prepare_safety(config.safety) if config.safety != self.config.safety else None

        def commit() -> None:
            if commit_safety is not None:
                commit_safety()
            self._apply(config)

        return commit

    def _prepare_safety(self, config: SafetyConfig) -> Callable[[], None]:
        commit_guard = self.guard.prepare(config, self._loop.time())
        gate = self._gate
        if gate is None and config.tenants:
            gate = Gate(config, self._place, self._fail, self._flush, self._seat)
        screening = make_screening(config)

        def commit() -> None:
            commit_guard()
            self._gate = gate
            if gate is not None:
                gate.apply(config)
            self._entrance.apply(config, screening, self._place if gate is None else gate.submit)

        return commit

    def _apply(self, config: GatewayConfig) -> None:
        """Use another configuration from now on."""
        self.observation.apply(config.observe)
        self.router.apply(config.routing)
        self._hedges.apply(config.hedging)
        self._use(config)

    def _use(self, config: GatewayConfig) -> None:
        self.config = config
        self.max_request_bytes = config.max_request_bytes  # these two are asked for with each request
        self._resumes = config.resume

    def instances_changed(self) -> None:
        """Place requests in line, if an instance has become usable."""
        for request in list(self._line):
            if not any(instance.endpoint.is_usable for instance in self.instances.values()):
                return
            self._leave_line(request)
            self._place(request)
        self._hub.flush()

    def _retry(self, request: Request, failure: Failure, code: int | None) -> None:
        name = request.instance.name if request.instance is not None else "?"
        log("retry", key=request.key, instance=name, attempt=request.attempts, reason=failure.message)
        self._metrics.retries.labels(name).inc()
        self._hedges.settle(request)
        request.detach(code)
        request.step(RETRY)
        choice = self._choose(request, self._clock())
        if choice is not None and choice.name in request.tried:
            self._line[request] = self._loop.call_later(RETRY_DELAY * request.attempts, self._place_again, request)
        else:
            self._place(request)

    def _resume(self, request: Request, failure: Failure, code: int | None) -> None:
        """Have a request that has been answered in part go on elsewhere."""
        try:
            delivered, continuation = request.what_follows()
        except NotResumable as error:
            log("not_resumed", key=request.key, reason=str(error))
            self._fail(request, failure, code)
            return
        if delivered.is_finished:
            self.succeeded(request, (), code)
            return
        name = request.instance.name if request.instance is not None else "?"
        log("resume", key=request.key, instance=name, tokens=len(delivered.token_ids), reason=failure.message)
        self._metrics.resumes.labels(name).inc()
        request.go_on_from(continuation, self._clock())
        self._retry(request, failure, code)

    def _fail(self, request: Request, failure: Failure, code: int | None = None) -> None:
        self._conclude(request, failure.code.name.lower(), code)
        request.exchange.failed(request, failure)

    def _conclude(self, request: Request, outcome: str, code: int | None) -> None:
        name = request.instance.name if request.instance is not None else ""
        if request.stage == WAITING:
            self._leave_line(request)
        if self._hedges.is_used:
            self._hedges.settle(request)
        request.detach(code)
        request.step(END)
        self._ended(request, name, outcome)

    def _note_seconds(self, request: Request) -> None:
        if request.instance is not None and request.exchange.call.is_routed:
            seconds = (time.time_ns() - request.routed_ns) / 1e9
            self.router.answered(request.instance.name, seconds, self._clock())

    # -- placing ------------------------------------------------------------------------------------------------------

    def _choose(self, request: Request, now: float) -> Instance | None:
        return self._instance_for(self._asked(request), now)

    def _asked(self, request: Request) -> Asked:
        policy = self.router.policy
        is_plain = not request.tried and policy.marks is None and not policy.wants_session
        return PLAIN if is_plain else describe(request, policy)

    def _instance_for(self, asked: Asked, now: float) -> Instance | None:
        candidates = [each.candidate for each in self.instances.values() if each.endpoint.is_usable]
        for candidate in candidates:
            candidate.now = now
        endpoint = self.router.choose(asked, candidates)
        return None if endpoint is None else self.instances[endpoint.name]

    def _place(self, request: Request) -> None:
        now = self._clock()
        asked = self._asked(request)
        instance = self._instance_for(asked, now)
        if instance is not None:
            self._send(request, instance, asked, now)
            return
        delay = max(0.0, self.config.queue_timeout_s - (now - request.line_since))
        self._line[request] = self._loop.call_later(delay, self._give_up, request)

    def _place_again(self, request: Request) -> None:
        self._leave_line(request)
        self._place(request)
        self._hub.flush()

    def _send(self, request: Request, instance: Instance, asked: Asked, now: float) -> None:
        self.router.placed(asked, instance.name, instance.load, now)
        call = request.exchange.call
        link = instance.pool.acquire()
        stream = link.open(self.observation.upstream_block(request, instance.scheme, instance.authority), request)
        if call.is_routed and self._resumes and not request.attempts:
            request.tape = Tape()
        request.attach(instance, link, stream)
        if not call.is_routed:
            request.send_kept()
            return
        if not request.key:
            self._num_keys += 1
            request.key = f"{self._keys}{self._num_keys}"
        request.copy_key = request.next_key()
        request.send_message(engine_facts(request, request.copy_key, now))
        if self._hedges.is_used:
            self._hedges.sent(request)

    def _give_up(self, request: Request) -> None:
        message = f"no instance became usable within {self.config.queue_timeout_s:g} s"
        self._conclude(request, "unavailable", None)
        request.exchange.failed(request, Failure(Code.UNAVAILABLE, message))
        self._hub.flush()

    def _ended(self, request: Request, instance: str, outcome: str) -> None:
        if request.screen is not None and request.screen.hearing is not None:
            request.screen.hearing.leave()
        self.observation.ended(request, instance, outcome)
        self._metrics.requests.count((request.exchange.call.method, instance, outcome))
        if self._gate is not None:
            self._gate.left(request, request.tokens_used())

    def _leave_line(self, request: Request) -> None:
        self._entrance.leave(request)
        timer = self._line.pop(request, None)
        if timer is not None:
            timer.cancel()


def _deadly(failure: Failure, request: Request) -> Failure:
    """Return the failure of a request that may be what its instances die of."""
    log("request_given_up", key=request.key, deaths=request.deaths, reason=failure.message)
    told = f"UNAVAILABLE: {request.deaths} instances in a row ended before they answered this request; the last: "
    return replace(failure, message=told + failure.message, trailers=())
