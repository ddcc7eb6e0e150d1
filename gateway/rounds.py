"""What is looked at a few times a second: silent streams, instances that do worse than others, the workload level.

Knows all open requests and all instances. Does not know how a request is moved on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.abort import send_abort
from gateway.log import log
from gateway.request import Request
from gateway.silence import SilenceWatch
from gateway.status import Code, Failure
from gateway.wire.faults import ErrorCode

if TYPE_CHECKING:
    from gateway.dispatcher import Dispatcher
    from gateway.link import Hub
    from gateway.metrics import Metrics

LOOKS_IN_A_STALL = 10
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds between two rounds


class Rounds:
    """One who looks."""

    def __init__(self, dispatcher: Dispatcher, hub: Hub, metrics: Metrics) -> None:
        """Begin without having seen anything."""
        self._dispatcher = dispatcher
        self._hub = hub
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._silence = SilenceWatch()
        self._look_at = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the next round: no shorter than what is configured needs, since each wakes an idle process."""
        stall = self._dispatcher.config.stall_timeout_s
        needed = [LONGEST_PAUSE]
        if stall is not None:
            needed.append(stall / LOOKS_IN_A_STALL)
        if self._dispatcher.router.levels is not None:
            needed.append(SHORTEST_PAUSE)
        return max(SHORTEST_PAUSE, min(needed))

    def go(self) -> None:
        """Look at everything once."""
        self._move_stalled()
        self._judge_outliers()
        self._follow_level()

    def _follow_level(self) -> None:
        at_instances = sum(instance.load.in_flight_everywhere for instance in self._dispatcher.instances.values())
        in_flight = self._dispatcher.num_in_line + at_instances
        switch = self._dispatcher.router.observe(in_flight, self._loop.time())
        if switch is not None:
            log("level", level=switch.level.value, pool=switch.pool, reason=switch.reason)
            self._metrics.level_switches.labels(switch.level.value).inc()

    def _judge_outliers(self) -> None:
        endpoints = {name: instance.endpoint for name, instance in self._dispatcher.instances.items()}
        for change in self._dispatcher.router.judge(endpoints, self._loop.time()):
            log("outlier" if change.reason else "outlier_returns", instance=change.name, reason=change.reason)
            if change.reason:
                self._metrics.ejections.labels(change.name, "outlier").inc()

    def _move_stalled(self) -> None:
        limit, now = self._dispatcher.config.stall_timeout_s, self._loop.time()
        if limit is None or now < self._look_at:
            return
        self._look_at = now + limit / LOOKS_IN_A_STALL
        pools = [instance.pool for instance in self._dispatcher.instances.values()]
        owners = [stream.owner for pool in pools for stream in pool.streams()]
        open_requests = [owner for owner in owners if isinstance(owner, Request)]
        for request in self._silence.stalled(open_requests, limit, now):
            instance = request.instance
            if instance is None:
                continue
            message, key = f"instance {instance.name} has sent nothing for over {limit:g} s", request.copy_key
            self._dispatcher.attempt_failed(request, Failure(Code.UNAVAILABLE, message), ErrorCode.CANCEL)
            send_abort(instance, key, repeat=False)
        self._hub.flush()
