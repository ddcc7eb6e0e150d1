"""What a request passes before limits and routing: no command, no forbidden content, no judge against it.

Knows requests and verdicts. Does not know limits or instances, which come behind `admit`.

Invariant: a request that was taken is admitted or refused once, unless it leaves before it has been judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.config import ConfigError
from gateway.content.judging import ask, guarded
from gateway.content.messages import texts_of_prompt
from gateway.content.screen import Screening, screen_prompt
from gateway.safety.commands import refuse_command
from gateway.status import Code, Failure

if TYPE_CHECKING:
    from gateway.content.check import Judge
    from gateway.request import Request
    from gateway.safety.config import SafetyConfig


class Entrance:
    """Where requests come in."""

    def __init__(
        self,
        config: SafetyConfig,
        admit: Callable[[Request], None],
        refuse: Callable[[Request, Failure], None],
        flush: Callable[[], None],
    ) -> None:
        """Begin with nobody waiting; `flush` writes what a verdict has brought about."""
        self.apply(config, make_screening(config), admit)
        self._refuse = refuse
        self._flush = flush
        self._waiting: dict[Request, asyncio.Task[None]] = {}

    def apply(self, config: SafetyConfig, screening: Screening | None, admit: Callable[[Request], None]) -> None:
        """Use another configuration for requests to come."""
        self._screening = screening
        self._timeout = config.content.judge_timeout_s if config.content is not None else 0.0
        self._allow_commands = config.allow_management
        self._admit = admit

    def take(self, request: Request) -> None:
        """Take a new request; where there is a judge of prompts, what becomes of it is known later."""
        if not request.exchange.call.is_routed:  # no command either: Triton takes those on streams only
            self._admit(request)
            return
        failure = None if self._allow_commands else refuse_command(request.body())
        if failure is None and self._screening is not None:
            failure = screen_prompt(self._screening, request)
        if failure is not None:
            self._refuse(request, failure)
        elif self._screening is None or self._screening.judge is None:
            self._admit(request)
        else:
            work = guarded(request, self._hear(request, self._screening.judge))
            self._waiting[request] = asyncio.get_running_loop().create_task(work)

    def leave(self, request: Request) -> None:
        """Wait no longer for the verdict on a request, if one is awaited."""
        task = self._waiting.pop(request, None)
        if task is not None:
            task.cancel()

    async def _hear(self, request: Request, judge: Judge) -> None:
        verdict = await ask(judge, texts_of_prompt(request.body()), self._timeout, "prompt")
        del self._waiting[request]
        if verdict is None:
            self._admit(request)
        elif isinstance(verdict, str):
            message = f"the prompt is blocked by the content rule {verdict}"
            self._refuse(request, Failure(Code.INVALID_ARGUMENT, message))
        else:
            self._refuse(request, verdict)
        self._flush()


def make_screening(config: SafetyConfig) -> Screening | None:
    """Return the check of prompts and answers that a configuration asks for, if it does.

    Raises:
        ConfigError: its hook cannot be made.
    """
    try:
        return Screening(config.content) if config.content is not None else None
    except Exception as error:  # the operator's own code
        raise ConfigError(f"the hook of the content rules cannot be made: {error!r}") from error
