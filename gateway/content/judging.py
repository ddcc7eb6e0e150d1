"""What the operator's own judges say, who may take their time, and what of an answer waits for it.

Knows judges, texts and the pieces of one answer. Does not know how texts are read.

Invariants:
1. Whatever a judge does, nothing passes that it has not let pass.
2. Pieces of an answer leave in their order, and before whatever concludes it.
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

Pieces = list[tuple[bytes, bool]]  # bytes, and whether they end a message


async def ask(judge: Judge, texts: list[str], timeout: float, what: str) -> str | Failure | None:
    """Return None where the texts may pass, the name of the rule that forbids them, or why nobody knows."""
    try:
        async with asyncio.timeout(timeout):
            return await judge(texts)
    except TimeoutError:
        return Failure(Code.UNAVAILABLE, f"UNAVAILABLE: the {what} was not judged within {timeout:g} s")
    except Exception as error:  # noqa: BLE001 - the operator's own code: whatever it raises, nothing passes unjudged
        log("judge_failed", error=repr(error))
        return Failure(Code.UNAVAILABLE, f"UNAVAILABLE: the {what} could not be judged")


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
