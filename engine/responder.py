"""Sends each request what it has gained since its last response, from threads of its own.

Knows outputs of the engine, replies and sinks that take them. Does not know Triton, text or how a reply
travels; the engine's reader thread only merges outputs here and never waits for a send.

Invariants:
1. Replies of one request leave in order, one at a time, and cover its tokens exactly once.
2. A request gets exactly one final reply, and none after it.
3. A request that has something to send is in one place: ready (first replies in front), or resting until its turn.
   First and final replies never rest. How long the others rest grows with the number of open requests, so that all
   responses together cost a bounded share of the machine: alone, a request gets every token at once; in a crowd
   several tokens share a response.
4. Nothing is lost between `push` and `open`: outputs may come before the request's sink is known.
"""

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from engine.outputs import RequestOutput
from engine.reply_stream import Delivery, Reply, ReplyStream
from engine.text.tokenizer import Tokenizer

MAX_REST_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where the replies of one request go; called by one thread at a time."""

    def send(self, reply: Reply) -> None:
        """Deliver a reply; may block."""
        ...


class _Place(Enum):
    """Where a request is."""

    IDLE = auto()  # nothing to send
    RESTING = auto()  # has something to send, and sent something a moment ago
    READY = auto()  # waits for a sender thread
    SENDING = auto()


@dataclass(slots=True, eq=False)
class _Open:
    """One request that has not had its final reply; guarded by the responder's lock, but for what only senders use."""

    request_id: int
    sink: Sink
    stream: bool
    delivery: Delivery
    outputs: list[RequestOutput] = field(default_factory=list)
    sequences: dict[int, ReplyStream] = field(default_factory=dict)
    has_sent: bool = False
    place: _Place = _Place.IDLE
    rests_until: float = 0.0


class Responder:
    """Coalesces outputs per request and hands them to sinks.

    Attributes:
        seconds_per_response: a request rests this long for each open request after a reply, at most
            `MAX_REST_SECONDS`; so no more than one response in this time leaves in the long run.
    """

    seconds_per_response: float = 0.0

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        num_threads: int,
        on_output: Callable[[RequestOutput], None],
    ) -> None:
        """Start the sender threads.

        Args:
            tokenizer: tells where text may be cut.
            num_threads: sends that may be under way at once.
            on_output: called with every output on the pushing thread, for measuring.
        """
        self._tokenizer = tokenizer
        self._on_output = on_output
        self._changed = threading.Condition()
        self._requests: dict[int, _Open] = {}
        self._early: dict[int, list[RequestOutput]] = {}
        self._first: deque[_Open] = deque()  # ready, and never sent anything: they go before the others
        self._ready: deque[_Open] = deque()
        self._resting: list[tuple[float, int, _Open]] = []  # a heap; entries whose request went ahead are stale
        self._tickets = itertools.count()
        self._closing = False
        names = [f"sender-{i}" for i in range(num_threads)]
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def num_open(self) -> int:
        """Requests that have not had their final reply."""
        with self._changed:
            return len(self._requests)

    def open(self, request_id: int, sink: Sink, *, stream: bool, delivery: Delivery = Delivery()) -> None:  # noqa: B008
        """Begin to send a request's outputs to `sink`: in chunks, or in one reply a sequence at the end."""
        request = _Open(request_id, sink, stream, delivery)
        with self._changed:
            self._requests[request_id] = request
            request.outputs.extend(self._early.pop(request_id, ()))
            self._place(request)

    def push(self, outputs: Sequence[RequestOutput]) -> None:
        """Take outputs from the engine; returns at once."""
        for output in outputs:
            self._on_output(output)
        with self._changed:
            for output in outputs:
                request = self._requests.get(output.request_id)
                if request is None:
                    self._early.setdefault(output.request_id, []).append(output)
                    continue
                request.outputs.append(output)
                self._place(request)

    def close(self, timeout: float) -> None:
        """Send what is waiting, then end the threads; requests without a final output get nothing more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _place(self, request: _Open) -> None:
        """Put a request where it belongs, given what it has to send."""
        if not request.outputs or request.place in (_Place.READY, _Place.SENDING):
            return
        last = request.outputs[-1]
        is_urgent = last.ends_request or (request.stream and last.finish_reason is not None)
        if not is_urgent and (not request.stream or request.place is _Place.RESTING):
            return
        if not is_urgent and request.rests_until > time.monotonic():
            request.place = _Place.RESTING
            heapq.heappush(self._resting, (request.rests_until, next(self._tickets), request))
        else:
            request.place = _Place.READY
            (self._ready if request.has_sent else self._first).append(request)
        self._changed.notify()

    def _run(self) -> None:
        while (work := self._take()) is not None:
            request, outputs = work
            is_final = self._send(request, outputs)
            with self._changed:
                request.place = _Place.IDLE
                if is_final:
                    del self._requests[request.request_id]
                else:
                    self._place(request)

    def _take(self) -> tuple[_Open, list[RequestOutput]] | None:
        """Wait for the next request to serve; None when closing and nothing waits."""
        with self._changed:
            while not self._first:
                seconds = self._wake_resting()
                if self._ready:
                    break
                if self._closing and seconds is None:
                    return None
                self._changed.wait(seconds)
            request = (self._first or self._ready).popleft()
            request.place = _Place.SENDING
            rest = min(self.seconds_per_response * len(self._requests), MAX_REST_SECONDS)
            request.rests_until = time.monotonic() + rest
            outputs, request.outputs = request.outputs, []
            return request, outputs

    def _wake_resting(self) -> float | None:
        """Make ready who has rested enough; return the seconds until the next one, None where there is none."""
        now = time.monotonic()
        while self._resting:
            until, _, request = self._resting[0]
            is_current = request.place is _Place.RESTING and request.rests_until == until
            if is_current and until > now and not self._closing:
                return until - now
            heapq.heappop(self._resting)
            if is_current:
                request.place = _Place.READY
                self._ready.append(request)
        return None

    def _send(self, request: _Open, outputs: list[RequestOutput]) -> bool:
        """Send a reply for each sequence that has something to say; return whether one was the final one."""
        for index, gained in _by_sequence(outputs).items():
            if index not in request.sequences:
                request.sequences[index] = ReplyStream(self._tokenizer, request.delivery)
            reply = request.sequences[index].take(gained)
            if not reply.chunk.token_ids and reply.last.finish_reason is None:
                continue
            request.has_sent = True
            try:
                request.sink.send(reply)
            except Exception:  # one broken sink must not stop the thread that serves all others
                logger.exception("a reply of request %d could not be sent", request.request_id)
        return outputs[-1].ends_request


def _by_sequence(outputs: Sequence[RequestOutput]) -> dict[int, list[RequestOutput]]:
    """Return the outputs of each sequence; the sequence whose output came last is the last one."""
    found: dict[int, list[RequestOutput]] = {}
    for output in outputs:
        found[output.sequence_index] = [*found.pop(output.sequence_index, ()), output]
    return found
