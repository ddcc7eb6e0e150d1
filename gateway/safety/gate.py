"""Requests before and after admission.

Knows requests, tickets and one timer. Does not know instances; who places requests is told which may go on.

Invariants:
1. A request has a ticket from `submit` to `left`, and waits, is placed or is refused meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.safety.admission import Admission, Refusal, Ticket
from gateway.safety.estimate import estimate_tokens
from gateway.safety.refusals import exhausted
from gateway.status import Code, Failure

if TYPE_CHECKING:
    from gateway.request import Request
    from gateway.safety.config import SafetyConfig
    from gateway.workers.seat import Seat


class Gate:
    """Lets requests of tenants through as their limits allow."""

    def __init__(
        self,
        config: SafetyConfig,
        place: Callable[[Request], None],
        refuse: Callable[[Request, Failure], None],
        flush: Callable[[], None],
        seat: Seat | None = None,
    ) -> None:
        """Begin with nobody waiting; `flush` writes what a timer has brought about."""
        row = None if seat is None else seat.table.row("\0tenants", seat.number)
        self.admission = Admission(config.max_in_flight, config.queue_size, config.max_wait_s, row)
        self._assumed = config.assumed_completion_tokens
        self._place = place
        self._refuse = refuse
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._tickets: dict[Request, Ticket] = {}
        self._requests: dict[Ticket, Request] = {}
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # uvloop's handle of a time that has come does not tell it

    def apply(self, config: SafetyConfig) -> None:
        """Use other limits from now on, for who waits too."""
        admission = self.admission
        admission.max_in_flight, admission.queue_size = config.max_in_flight, config.queue_size
        admission.max_wait, self._assumed = config.max_wait_s, config.assumed_completion_tokens
        self._plan(self._loop.time())

    def submit(self, request: Request) -> None:
        """Take a new request: place it, keep it waiting or refuse it."""
        tenant = request.exchange.call.tenant
        if tenant is None or not request.exchange.call.is_metered:
            self._place(request)
            return
        if tenant.is_gone:
            message = f"UNAUTHENTICATED: there is no tenant {tenant.config.name!r} any more"
            self._refuse(request, Failure(Code.UNAUTHENTICATED, message))
            return
        tokens = 0
        if tenant.counts_tokens and request.exchange.call.is_routed:
            tokens = estimate_tokens(request.body(), self._assumed)
        ticket = Ticket(tenant, tokens, self._loop.time())
        refusal = self.admission.enter(ticket, ticket.arrived_at)
        if refusal is not None:
            self._refuse(request, exhausted(refusal))
            return
        self._tickets[request] = ticket
        self._requests[ticket] = request
        if ticket.admitted_at is not None:
            self._place(request)
        self._plan(self.admission.next_at(self._loop.time()))

    def left(self, request: Request, used: int | None) -> None:
        """Take back the ticket of a request that has ended; `used` is None where its tokens are not known."""
        ticket = self._tickets.pop(request, None)
        if ticket is None:
            return
        del self._requests[ticket]
        now = self._loop.time()
        self.admission.leave(ticket, ticket.tokens if used is None else used, now)
        if self.admission.waiting:
            self._plan(now)

    def _pump(self) -> None:
        self._timer = None
        for ticket, refusal in self.admission.pump(self._loop.time()):
            request = self._requests.get(ticket)
            if request is None:
                continue
            self._go_on(request, ticket, refusal)
        self._plan(self.admission.next_at(self._loop.time()))
        self._flush()

    def _go_on(self, request: Request, ticket: Ticket, refusal: Refusal | None) -> None:
        if refusal is None:
            self._place(request)
            return
        del self._tickets[request], self._requests[ticket]
        self._refuse(request, exhausted(refusal))

    def _plan(self, at: float | None) -> None:
        if self._timer is not None and (at is None or at < self._timer_at):
            self._timer.cancel()
            self._timer = None
        if at is not None and self._timer is None:
            self._timer, self._timer_at = self._loop.call_at(at, self._pump), at
