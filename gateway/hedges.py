"""Second copies of requests whose first answer is late: the first of the two to answer goes on, the other is ended.

Knows requests, their second streams and how one takes the other's place. Does not know when a copy is worth it
(`HedgePlan`) or which instance gets it.

Invariants:
1. A request has at most one second copy, and only before its first answer.
2. A copy that is given up is reset, and aborted at its engine by a key of its own.
3. Nothing of a copy reaches the client before it has taken the request's place; an error of it never does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.abort import send_abort
from gateway.facts import engine_facts
from gateway.hedge_plan import HedgePlan, HedgingConfig
from gateway.instance_errors import failure_of_message
from gateway.request_stages import SENT
from gateway.routing.asked import prefill_weight
from gateway.status import HTTP_OK, Code, Failure, failure_of_http, failure_of_reset, failure_of_trailers
from gateway.wire import protobuf
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.faults import ErrorCode
from gateway.wire.messages import MessageCutter
from gateway.wire.stream import CLOSED

if TYPE_CHECKING:
    from gateway.instance import Instance
    from gateway.link import Hub
    from gateway.metrics import Metrics
    from gateway.observe.observation import Observation
    from gateway.request import Request


class Hedge:
    """The second copy of a request, until it answers or is given up."""

    def __init__(self, hedges: Hedges, request: Request, instance: Instance, block: bytes) -> None:
        """Open a stream for it, with these encoded headers."""
        self.request = request
        self.instance = instance
        self.key = request.next_key()
        self.routed_ns = time.time_ns()
        self.prefill = prefill_weight(request.kept_bytes)
        self.link = instance.pool.acquire()
        self.stream = self.link.open(block, self)
        self._hedges = hedges
        self._events: list[DataReceived] = []  # of a first message that is not complete
        self._cutter = MessageCutter(protobuf.STREAM_ERROR_TAG)
        instance.load.join(self.prefill)

    def send(self, message: bytes) -> None:
        """Send the whole request."""
        self.link.connection.outbox.send_data(self.stream, message, end_stream=True)

    def let_go(self, code: int | None) -> None:
        """Give up the stream, resetting it where `code` says why."""
        self.stream.owner = None
        self.instance.load.leave(self.prefill)
        if code is None:
            self.link.connection.release(self.stream)
        else:
            self.link.connection.reset(self.stream, code)
        self.link.check_idle()

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""
        if event.end_stream:
            failure = failure_of_trailers(event.headers) or Failure(Code.UNKNOWN, "it ended without an answer")
            self._hedges.lost(self, failure, None if event.stream.state == CLOSED else ErrorCode.NO_ERROR)
        elif HTTP_OK not in event.headers:
            self._hedges.lost(self, failure_of_http(event.headers), ErrorCode.CANCEL)

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response; with the first whole message it wins."""
        self._events.append(event)
        pieces, _ = self._cutter.feed(event.payload)
        if pieces:
            self._hedges.won(self, self._events)
        elif self._cutter.stopped_at is not None:
            self._hedges.lost(self, failure_of_message(self._cutter.stopped_at), ErrorCode.CANCEL)

    def on_reset(self, code: int) -> None:
        """Take the instance's RST_STREAM."""
        self.on_lost(failure_of_reset(code, self.instance.name))

    def on_lost(self, failure: Failure, code: int | None = None) -> None:
        """Take the end of the connection, or of the instance; a copy that has won is no longer this one's to end."""
        if self.request.hedge is self:
            self._hedges.lost(self, failure, code)
        elif self.request.stream is self.stream:
            self.request.on_lost(failure, code)

    def on_defect(self, failure: Failure) -> None:
        """Take that the gateway has failed at something that the instance sent."""
        if self.request.hedge is self:
            self._hedges.lost(self, failure, ErrorCode.INTERNAL_ERROR)
        else:
            self.request.on_defect(failure)

    def written(self, size: int) -> None:
        """Nobody waits for these bytes."""


class Hedges:
    """Every second copy, and the timers of requests that may get one."""

    def __init__(
        self,
        config: HedgingConfig | None,
        choose: Callable[[Request, float], Instance | None],
        *,
        observation: Observation,
        metrics: Metrics,
        hub: Hub,
        late: Callable[[Request], None],
    ) -> None:
        """Begin with none; `choose` finds an instance for a request, `late` learns of a first copy that has lost."""
        self._plan = HedgePlan(config) if config is not None else None
        self.is_used = config is not None  # ever: who never hedges need not ask about each request
        self._choose = choose
        self._observation = observation
        self._metrics = metrics
        self._hub = hub
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Request, asyncio.TimerHandle] = {}

    def apply(self, config: HedgingConfig | None) -> None:
        """Use another configuration for requests to come."""
        if config != (self._plan.config if self._plan is not None else None):
            self._plan = HedgePlan(config) if config is not None else None
            self.is_used = True

    def sent(self, request: Request) -> None:
        """Begin to wait for the first answer to a request that has just been sent."""
        if self._plan is None or request.kept is None:
            return
        if request.copies == 1:
            self._plan.sent()
        self._wait(request)

    def answered(self, request: Request) -> None:
        """Take the first answer."""
        self._note_seconds(request)
        self.settle(request)

    def settle(self, request: Request) -> None:
        """Stop waiting, and end the second copy if there is one."""
        timer = self._timers.pop(request, None)
        if timer is not None:
            timer.cancel()
        hedge, request.hedge = request.hedge, None
        if hedge is not None:
            hedge.let_go(ErrorCode.CANCEL)
            send_abort(hedge.instance, hedge.key, repeat=True)

    def take_over(self, request: Request, code: int | None) -> bool:
        """Have the second copy go on in the place of a first that has failed; return whether there is one.

        It may be late in its turn, and have another beside it then. `code` resets the stream of the first.
        """
        hedge = request.hedge
        if hedge is None:
            return False
        self._replace_first(hedge, code)
        self._wait(request)
        return True

    def won(self, hedge: Hedge, events: list[DataReceived]) -> None:
        """Have a second copy go on that has answered first; `events` are its answer so far."""
        request = hedge.request
        late, key = request.instance, request.copy_key
        self._note_seconds(request)  # at least so many: without them the percentile would sink
        self._late(request)
        self._replace_first(hedge, ErrorCode.CANCEL)
        if late is not None:
            send_abort(late, key, repeat=True)
        for event in events:
            request.on_data(event)

    def lost(self, hedge: Hedge, failure: Failure, code: int | None) -> None:
        """Forget a second copy that has failed: the first goes on as if there had been none."""
        hedge.request.hedge = None
        hedge.request.deaths += failure.is_death
        hedge.let_go(code)
        self._wait(hedge.request)
        if not failure.is_answer:
            hedge.instance.leave_behind(hedge.key)
        elif failure.code is Code.UNAVAILABLE:
            hedge.instance.unavailable()

    def _replace_first(self, hedge: Hedge, code: int | None) -> None:
        hedge.request.hedge = None
        self._metrics.hedge_wins.labels(hedge.instance.name).inc()
        hedge.request.detach(code)
        hedge.request.take_over(hedge)

    def _note_seconds(self, request: Request) -> None:
        if self._plan is not None:
            self._plan.answered((time.time_ns() - request.routed_ns) / 1e9)

    def _wait(self, request: Request) -> None:
        if self._plan is not None and self._plan.delay is not None:
            self._timers[request] = self._loop.call_later(self._plan.delay, self._begin, request)

    def _begin(self, request: Request) -> None:
        """Send a second copy; where there is no other instance or the share is used up, look again later."""
        del self._timers[request]
        if self._plan is None or request.stage != SENT or request.kept is None:
            return
        instance = self._choose(request, self._loop.time())
        if instance is None or instance is request.instance or not self._plan.take():
            self._wait(request)
            return
        request.tried.add(instance.name)
        self._metrics.hedges.labels(instance.name).inc()
        block = self._observation.upstream_block(request, instance.scheme, instance.authority)
        request.hedge = Hedge(self, request, instance, block)
        request.hedge.send(request.message(engine_facts(request, request.hedge.key, self._loop.time())))
        self._hub.flush()
