"""The HTTP port's plain answers: metrics, health, and draining an instance.

Knows what is shown and who may drain. Does not know HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.dispatcher import Dispatcher
from gateway.endpoint import Signal
from gateway.http_server import Answer
from gateway.metrics import Metrics
from gateway.safety.guard import Denied
from gateway.workers.seat import Seat


@dataclass(frozen=True, slots=True)
class PlainAnswers:
    """Answers from what the gateway knows now."""

    dispatcher: Dispatcher
    metrics: Metrics
    seat: Seat | None
    is_stopping: Callable[[], bool]

    async def answer(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer:
        """Answer a request that no other route takes."""
        if method == "POST" and path.startswith("/instances/"):
            return self._refuse_control(headers) or self._control(path.removeprefix("/instances/"))
        if method not in {"GET", "HEAD"}:
            return Answer(405, b"only GET\n")
        if path == "/metrics":
            text = await asyncio.to_thread(self._metrics_page)  # of 300 tenants it takes 0.2 s
            return Answer(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if path == "/healthz":
            return self._healthz()
        return Answer(404, b"there are /metrics, /healthz, /dashboard and /v1\n")

    def _metrics_page(self) -> bytes:
        own = self.metrics.render()
        return own if self.seat is None else self.seat.render(own)

    def _healthz(self) -> Answer:
        instances = list(self.dispatcher.instances.values())
        usable = any(instance.endpoint.is_usable for instance in instances) and not self.is_stopping()
        facts = {"usable": usable, "draining": self.is_stopping(), "instances": [i.facts() for i in instances]}
        facts["routing"] = self.dispatcher.router.status()
        return Answer(200 if usable else 503, json.dumps(facts).encode() + b"\n", "application/json")

    def _refuse_control(self, headers: Sequence[tuple[bytes, bytes]]) -> Answer | None:
        try:
            tenant = self.dispatcher.guard.identify(headers)
        except Denied as denied:
            return Answer(401, f"{denied}\n".encode())
        if tenant is not None and not tenant.config.is_admin:
            return Answer(403, f"tenant {tenant.config.name} is no admin\n".encode())
        return None

    def _control(self, path: str) -> Answer:
        name, _, action = path.rpartition("/")
        instance = self.dispatcher.instances.get(name)
        if instance is None or action not in {"drain", "resume"}:
            return Answer(404, b"POST /instances/NAME/drain or /instances/NAME/resume\n")
        if instance.load.row is not None:
            instance.load.row.drain(action == "drain")
        instance.signal(Signal.DRAIN if action == "drain" else Signal.RESUME, f"{action} was asked for")
        return Answer(200, json.dumps(instance.facts()).encode() + b"\n", "application/json")
