"""Calls of the gateway's own: the abort message to an engine, and the question whether an instance is ready.

Knows their bytes. Does not know when to send them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.call import SERVER_READY, STREAM_INFER, own_block
from gateway.safety.commands import ABORT_TENSOR, ENGINE_MODEL
from gateway.status import Code, Failure, failure_of_reset, failure_of_trailers
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.faults import ErrorCode
from gateway.wire.messages import PREFIX_SIZE, frame_message
from gateway.wire.protobuf import encode_abort
from gateway.wire.stream import CLOSED

if TYPE_CHECKING:
    from gateway.instance import Instance
    from gateway.upstream import UpstreamLink
    from gateway.wire.stream import Stream

REPEAT_DELAY = 0.5  # seconds; a request that had not answered may not have reached the engine when its abort did
CALL_TIMEOUT = 2.0

Done = Callable[[Failure | None, bytes], None]


class OwnCall:
    """A unary call that nobody but the gateway waits for; ends exactly once."""

    def __init__(self, instance: Instance, path: bytes, body: bytes, done: Done) -> None:
        """Send `body`; `done` gets the failure or None, and the response message."""
        self._done = done
        self._response = bytearray()
        self._ended = False
        self._link: UpstreamLink = instance.pool.acquire()
        self._stream: Stream = self._link.open(own_block(path, instance.scheme, instance.authority), self)
        self._link.connection.outbox.send_data(self._stream, frame_message(body), end_stream=True)
        self._timer = self._link.loop.call_later(CALL_TIMEOUT, self._expire)

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""
        if event.end_stream:
            self._end(failure_of_trailers(event.headers))

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response."""
        self._response += event.payload
        self._link.connection.consume(event.stream, event.size)

    def on_reset(self, code: int) -> None:
        """Take a reset by the instance."""
        self._end(failure_of_reset(code, self._link.name))

    def on_lost(self, failure: Failure, code: int | None = None) -> None:  # noqa: ARG002 - `_end` resets what is open
        """Take the end of the connection."""
        self._end(failure)

    def on_defect(self, failure: Failure) -> None:
        """Take that the gateway has failed at something that the instance sent."""
        self._end(failure)

    def written(self, size: int) -> None:
        """Nobody waits for these bytes."""

    def _expire(self) -> None:
        self._end(Failure(Code.DEADLINE_EXCEEDED, f"no answer within {CALL_TIMEOUT:g} s"))
        self._link.hub.flush()

    def _end(self, failure: Failure | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        self._stream.owner = None
        if self._stream.state == CLOSED:
            self._link.connection.release(self._stream)
        else:
            self._link.connection.reset(self._stream, ErrorCode.CANCEL)
        self._link.check_idle()
        self._done(failure, bytes(self._response[PREFIX_SIZE:]))


def send_abort(instance: Instance, key: str, repeat: bool) -> None:
    """Tell the engine of an instance to end the request with this key; once more a little later if `repeat`."""
    OwnCall(instance, STREAM_INFER, encode_abort(ENGINE_MODEL, ABORT_TENSOR, key), lambda _failure, _response: None)
    if repeat:
        asyncio.get_running_loop().call_later(REPEAT_DELAY, _repeat, instance, key)


def ask_ready(instance: Instance, answer: Callable[[str | None], None]) -> None:
    """Ask an instance whether it is ready; `answer` gets None for yes, else the reason."""

    def done(failure: Failure | None, response: bytes) -> None:
        if failure is not None:  # whatever it is: who cannot say that it is ready, such as another server, is not
            answer(f"{failure.code.name}: {failure.message}")
        else:
            answer(None if response == b"\x08\x01" else "it says that it is not ready")

    OwnCall(instance, SERVER_READY, b"", done)


def _repeat(instance: Instance, key: str) -> None:
    send_abort(instance, key, repeat=False)
    instance.pool.hub.flush()
