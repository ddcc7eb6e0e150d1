"""One request on its way to an instance and back.

Knows its own bytes, its stage, and the upstream stream that carries it. Does not know how an instance is
chosen or what the client's other requests do.

Invariants:
1. It leaves `DONE` never, and reaches it exactly once.
2. Until its first response it can be sent again; while it has a `tape`, it can go on elsewhere after one too.
"""

from __future__ import annotations

from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn

from gateway.instance_errors import failure_of_message
from gateway.request_memory import MAX_ID_BYTES, RequestMemory
from gateway.request_stages import ANSWER, ANSWERING, DONE, NEXT, SEND, SENT, WAITING, Stage, Step
from gateway.routing.asked import prefill_weight
from gateway.status import HTTP_OK, OK_TRAILERS, Code, Failure, failure_of_http, failure_of_reset, failure_of_trailers
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.faults import ErrorCode
from gateway.wire.messages import MessageCutter, is_message
from gateway.wire.protobuf import STREAM_ERROR_TAG
from gateway.wire.stream import CLOSED

if TYPE_CHECKING:
    from gateway.content.screen import Screen
    from gateway.exchange import Exchange
    from gateway.hedges import Hedge
    from gateway.instance import Instance
    from gateway.observe.observer import Observer
    from gateway.upstream import UpstreamLink
    from gateway.wire.stream import Stream

MAX_KEPT_BYTES = 64 * 2**20


class Request(RequestMemory):
    """What the router places: one message of a `ModelStreamInfer` stream, or one other call as a whole."""

    __slots__ = (
        "arrived_at",
        "arrived_ns",
        "attempts",
        "concurrent",
        "copies",
        "copy_key",
        "cutter",
        "deaths",
        "exchange",
        "first_ns",
        "hedge",
        "instance",
        "key",
        "line_since",
        "link",
        "observer",
        "owed",
        "prefill",
        "routed_ns",
        "screen",
        "span",
        "stage",
        "stream",
        "tried",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, arrived_at: float) -> None:
        """Begin with no bytes; `arrived_at` is in seconds of the loop's clock."""
        super().__init__()
        self.exchange = exchange
        self.arrived_at = arrived_at
        self.arrived_ns = time_ns()  # of the wall clock, as all marks in ns
        self.routed_ns = self.first_ns = 0
        self.concurrent = 0
        self.line_since = arrived_at  # since when it has been looking for an instance
        self.prefill = 0.0  # what its prompt weighs at its instance, in requests, until there is an answer
        self.stage = WAITING  # the number of a `Stage`
        self.key = ""
        self.copies = 0  # sent so far, of a routed request
        self.copy_key = ""  # what names the one that is under way to the engine
        self.tried: set[str] = set()
        self.attempts = 0
        self.deaths = 0  # of instances that had it, in a row without an answer
        self.instance: Instance | None = None
        self.link: UpstreamLink | None = None
        self.stream: Stream | None = None
        self.cutter: MessageCutter | None = None  # of the attempt, once a frame was not just one message
        self.observer: Observer | None = None
        self.screen: Screen | None = None
        self.span: Any = None  # OpenTelemetry's, where requests are traced
        self.owed = 0  # bytes that the instance has sent to a screen, not yet given back to it
        self.hedge: Hedge | None = None

    def step(self, step: int) -> None:
        """Move in the table; where a call would count, it is done in place.

        Raises:
            RuntimeError: the table has no such step, which is a defect.
        """
        self.stage = NEXT[self.stage][step] or self._refuse(step)

    def _refuse(self, step: int) -> NoReturn:
        raise RuntimeError(f"{Step(step).name} of a request that is {Stage(self.stage).name}")

    @property
    def can_retry(self) -> bool:
        """Whether nothing has been answered and everything sent could be sent again."""
        return self.stage == SENT and self.kept is not None

    @property
    def can_resume(self) -> bool:
        """Whether it has been answered in part, and another instance could go on from there."""
        return self.stage == ANSWERING and self.tape is not None and self.tape.is_whole

    def add(self, payload: bytes, complete: bool) -> None:
        """Take more of the request's bytes, sending them on if it is under way."""
        self.keep(payload, complete)
        if self.kept_bytes > MAX_KEPT_BYTES and self.stage != WAITING:
            self.kept = None
        if self.stream is not None:
            self._send(payload, complete)

    def attach(self, instance: Instance, link: UpstreamLink, stream: Stream) -> None:
        """Take the upstream stream that will carry this attempt."""
        self.stage = NEXT[self.stage][SEND] or self._refuse(SEND)
        self.attempts += 1
        self.tried.add(instance.name)
        self.routed_ns = time_ns()
        self.instance, self.link, self.stream = instance, link, stream
        self.prefill = prefill_weight(self.kept_bytes) if self.exchange.call.is_routed else 0.0
        instance.load.join(self.prefill)
        self._begin_answer(stream)

    def _begin_answer(self, stream: Stream) -> None:
        stream.recording = self.tape
        self.cutter = None
        if self.observer is not None:
            self.observer.begin_again()

    def next_key(self) -> str:
        """Return the name of one more copy; the first has the request's own."""
        self.copies += 1
        return self.key if self.copies == 1 else f"{self.key}.{self.copies}"

    def send_kept(self) -> None:
        """Send what is there so far, as it came."""
        self._send(self.body(), self.complete)

    def send_message(self, extra: bytes) -> None:
        """Send what is there as one message, with the encoded fields `extra` appended."""
        if self.link is not None and self.stream is not None:
            self.link.connection.outbox.send_data(self.stream, self.message(extra), None, end_stream=True)

    def take_over(self, hedge: Hedge) -> None:
        """Go on as the second copy, having let go of the first."""
        self.instance, self.link, self.stream = hedge.instance, hedge.link, hedge.stream
        self.copy_key, self.routed_ns, self.prefill = hedge.key, hedge.routed_ns, hedge.prefill
        self.stream.owner = self
        self._begin_answer(self.stream)

    def go_on_from(self, continuation: bytes, now: float) -> None:
        """Prepare for another instance, which is to go on where this one has failed."""
        self.continuation = continuation
        self.line_since = now
        self.attempts = 1
        self.tried = {self.instance.name} if self.instance is not None else set()

    def forget_tape(self) -> None:
        """Give up going on elsewhere."""
        super().forget_tape()
        if self.stream is not None:
            self.stream.recording = None

    def detach(self, code: int | None = None) -> None:
        """Let go of the upstream stream, resetting it where `code` says why."""
        link, stream, instance = self.link, self.stream, self.instance
        self.link = self.stream = self.instance = None
        if instance is not None:
            instance.load.leave(self.prefill)
        self.prefill = 0.0
        if link is None or stream is None:
            return
        stream.owner = None
        if code is None:
            link.connection.release(stream)
        else:
            link.connection.reset(stream, code)
        if link.is_draining:
            link.check_idle()

    # -- called by the upstream link ----------------------------------------------------------------------------------

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""
        if event.end_stream:
            self._on_end(event)
        elif HTTP_OK not in event.headers:
            self.exchange.dispatcher.attempt_failed(self, failure_of_http(event.headers), ErrorCode.CANCEL)
        elif not self.exchange.call.is_routed:
            self.exchange.response_headers(event.headers)

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response."""
        if self.observer is not None:
            self.observer.take(event.payload)
        if self.cutter is None and self.screen is None and is_message(event.payload, STREAM_ERROR_TAG):  # as most are
            self._take_message(event.payload)
        else:
            self._take_pieces(event.payload)

    def _take_message(self, message: bytes) -> None:
        is_first = self.stage == SENT
        if is_first:
            self._note_answer()
        self.record(message, True)
        self.exchange.deliver_message(self, message)
        if not is_first:  # many a request has but one answer
            self._open_lane()

    def _take_pieces(self, payload: bytes) -> None:
        if self.cutter is None:
            self.cutter = MessageCutter(STREAM_ERROR_TAG if self.exchange.call.is_routed else None)
        pieces, count = self.cutter.feed(payload)
        if pieces:
            is_first = self.stage == SENT
            if is_first:
                self._note_answer()
            for piece, ends in pieces:
                self.record(piece, ends)
            if self.screen is not None and self.screen.watches:
                self._deliver_screened(self.screen, pieces)
            else:
                self.exchange.deliver(self, pieces, count)
            if not is_first:
                self._open_lane()
        if self.screen is not None and self.screen.has_cut:
            dispatcher = self.exchange.dispatcher
            dispatcher.when_judged(self, partial(dispatcher.cut_short, self))
        elif self.cutter is not None and self.cutter.stopped_at is not None:
            self.exchange.dispatcher.attempt_failed(self, failure_of_message(self.cutter.stopped_at))

    @property
    def _is_at_boundary(self) -> bool:
        return self.cutter is None or self.cutter.at_boundary

    def _deliver_screened(self, screen: Screen, pieces: list[tuple[bytes, bool]]) -> None:
        self.owed += sum([len(piece) for piece, _ in pieces])
        pieces, count = screen.answer(pieces)
        if not pieces:
            self.written(0)  # the screen holds a part of a message: the rest is to come
        elif screen.hearing is not None:
            screen.hearing.take(pieces, count)
        else:
            self.exchange.deliver(self, pieces, count)

    def on_reset(self, code: int) -> None:
        """Take the instance's RST_STREAM."""
        name = self.instance.name if self.instance is not None else "?"
        self.exchange.dispatcher.attempt_failed(self, failure_of_reset(code, name))

    def on_lost(self, failure: Failure, code: int | None = None) -> None:
        """Take the end of the connection, or of the instance."""
        self.exchange.dispatcher.attempt_failed(self, failure, code)

    def on_defect(self, failure: Failure) -> None:
        """Take that the gateway has failed at something that the instance sent."""
        if self.stage == DONE:  # its client may not have been told
            self.exchange.end(failure)
        else:
            self.exchange.dispatcher.attempt_failed(self, failure, ErrorCode.INTERNAL_ERROR)

    def written(self, size: int) -> None:
        """Give back to the instance what has gone on to the client."""
        if self.link is None or self.stream is None:
            return
        if self._is_screened:
            size, self.owed = self.owed, 0
        self.link.connection.consume(self.stream, size)

    @property
    def _is_screened(self) -> bool:
        return self.screen is not None and self.screen.watches

    def _open_lane(self) -> None:
        if self.link is None or self.stream is None or self.stream.target is not None:
            return
        is_plain = self.observer is None and not self._is_screened
        is_simple = is_plain and self._is_at_boundary and self.stage == ANSWERING
        if is_simple and self.exchange.is_clear:
            self.link.connection.enter_lane(self.stream, self.exchange.stream)

    def tokens_used(self) -> int | None:
        """Return how many tokens the request has taken, as far as anybody watched."""
        return self.observer.tokens_used() if self.observer is not None else None

    def leave_lane(self) -> None:
        """Have every further frame come through here."""
        if self.link is not None and self.stream is not None:
            self.link.connection.leave_lane(self.stream)

    def _note_answer(self) -> None:
        self.stage = NEXT[self.stage][ANSWER] or self._refuse(ANSWER)
        self.deaths = 0
        self.first_ns = self.first_ns or time_ns()
        if self.kept_bytes > MAX_ID_BYTES:  # below that there is nothing to shed
            self.shed(self.exchange.call.is_routed)
        if self.instance is not None:
            self.instance.load.prefill -= self.prefill  # the prompt is computed
        self.prefill = 0.0
        self.exchange.dispatcher.first_answer(self)

    def _on_end(self, event: HeadersReceived) -> None:
        failure = None if event.headers == OK_TRAILERS else failure_of_trailers(event.headers)
        if failure is None and self.cutter is not None and not self.cutter.at_boundary:
            failure = Failure(Code.INTERNAL, "the instance ended its stream within a message")
        code = None if event.stream.state == CLOSED else ErrorCode.NO_ERROR
        if failure is None:
            self.exchange.dispatcher.succeeded(self, event.headers, code)
        else:
            self.exchange.dispatcher.attempt_failed(self, failure, code)

    def _send(self, payload: bytes, complete: bool) -> None:
        if self.link is None or self.stream is None:
            return
        owner = None if self.exchange.call.is_routed else self.exchange
        outbox = self.link.connection.outbox
        if payload:
            outbox.send_data(self.stream, payload, owner, end_stream=complete)
        elif complete:
            outbox.finish(self.stream)
