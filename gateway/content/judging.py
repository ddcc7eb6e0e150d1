"""What the operator's own judges say, who may take their time, and what of an answer waits for it.

Knows judges, texts and the pieces of one answer. Does not know how texts are read.

Invariants:
1. Whatever a judge does, nothing passes that it has not let pass.
2. Pieces of an answer leave in their order, and before whatever concludes it.
3. Nobody waits for a judge that is told to stop, and it is over soon, also where it catches its cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from gateway.link import end_owner
from gateway.log import log
from gateway.status import Code, Failure

if TYPE_CHECKING:
    from gateway.content.check import Judge
    from gateway.content.screen import Screen
    from gateway.request import Request

STOP_SECONDS = 1.0

Pieces = list[tuple[bytes, bool]]  # bytes, and whether they end a message


async def ask(judge: Judge, texts: list[str], timeout: float, what: str) -> str | Failure | None:
    """Return None where the texts may pass, the name of the rule that forbids them, or why nobody knows."""
    work = _verdict(judge, texts)
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait({task}, timeout=timeout)
    finally:  # of itself, or because the request leaves
        if not task.done():
            _stop(task, work)
    if not task.done():
        return Failure(Code.UNAVAILABLE, f"UNAVAILABLE: the {what} was not judged within {timeout:g} s")
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    verdict = None if error is not None else task.result()
    if error is None and (verdict is None or isinstance(verdict, str)):
        return verdict
    log("judge_failed", error=repr(error or TypeError(f"{verdict!r} is no verdict")))
    return Failure(Code.UNAVAILABLE, f"UNAVAILABLE: the {what} could not be judged")


async def _verdict(judge: Judge, texts: list[str]) -> object:
    """Ask the operator's own code, which may do whatever it likes."""
    return await judge(texts)


def _stop(task: asyncio.Task[object], work: Coroutine[None, None, object]) -> None:
    """Cancel a judge; one that still runs `STOP_SECONDS` later has caught that, and its coroutine is closed."""
    task.cancel()
    asyncio.get_running_loop().call_later(STOP_SECONDS, _close, task, work)


def _close(task: asyncio.Task[object], work: Coroutine[None, None, object]) -> None:
    if not task.done():
        log("judge_failed", error="it catches its cancellation")
        try:
            work.close()
        except RuntimeError as error:  # it catches that too
            log("judge_failed", error=repr(error))
        task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it


async def guarded(request: Request, work: Coroutine[None, None, None]) -> None:
    """Do something for a request of which nobody waits for the end; where that fails, the request ends."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - a defect of ours
        end_owner(request, error)
        request.exchange.link.hub.flush()


class Hearing:
    """One answer before its judge: what comes while a verdict is awaited is judged together, with all before it."""

    def __init__(self, judge: Judge, timeout: float, screen: Screen, request: Request) -> None:
        """Begin with nothing to judge; a verdict is due within `timeout` seconds."""
        self._judge = judge
        self._timeout = timeout
        self._screen = screen
        self._request = request
        self._held: Pieces = []
        self._num_messages = 0
        self._conclude: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, pieces: Pieces, num_messages: int) -> None:
        """Hold whole messages of the answer until they have been judged."""
        self._held += pieces
        self._num_messages += num_messages
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(guarded(self._request, self._hear()))

    def conclude(self, conclude: Callable[[], None]) -> None:
        """Call `conclude` behind all that has come: at once where nothing waits; of several the first counts."""
        if self._task is None:
            conclude()
        elif self._conclude is None:
            self._conclude = conclude

    def leave(self) -> None:
        """Wait for no verdict any more."""
        self._held = []
        self._conclude = None
        if self._task is not None:
            self._task.cancel()

    async def _hear(self) -> None:
        while self._held:
            held, count = self._held, self._num_messages
            self._held, self._num_messages = [], 0
            verdict = await ask(self._judge, self._screen.texts(), self._timeout, "answer")
            if verdict is not None:
                self._stop(verdict, held)
            else:
                self._request.exchange.deliver(self._request, held, count)
            self._request.exchange.link.hub.flush()
        self._task = None
        if self._conclude is not None:
            self._conclude()
            self._request.exchange.link.hub.flush()

    def _stop(self, verdict: str | Failure, held: Pieces) -> None:
        """End the answer in the place of what is held."""
        self._task, self._held, self._conclude = None, [], None
        if isinstance(verdict, str):
            self._request.exchange.deliver(self._request, self._screen.filtered(verdict, held), 1)
            self._request.exchange.dispatcher.cut_short(self._request)
        else:
            self._request.exchange.dispatcher.cut_short(self._request, verdict)
