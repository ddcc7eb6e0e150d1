"""Which instances there are now: joins what is new, lets go of what is gone, leaves the rest alone.

Knows instances by their configuration. Does not know where the list comes from or how requests are placed.

Invariant: an instance that leaves takes nothing new at once, finishes what it has, and is cut after `drain_timeout_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.endpoint import Signal
from gateway.link import close_links
from gateway.log import log
from gateway.scraper import watch

if TYPE_CHECKING:
    from gateway.config import GatewayConfig, InstanceConfig
    from gateway.instance import Instance
    from gateway.link import Hub

POLL_SECONDS = 0.05


class Fleet:
    """The instances behind the gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        instances: dict[str, Instance],
        hub: Hub,
        make: Callable[[InstanceConfig], Instance],
    ) -> None:
        """Take the dictionary to keep current, and how an instance is made."""
        self.config = config
        self.leaving: set[Instance] = set()
        self._instances = instances
        self._hub = hub
        self._make = make
        self._watches: dict[Instance, asyncio.Task[None]] = {}
        self._farewells: set[asyncio.Task[None]] = set()

    def apply(self, wanted: Sequence[InstanceConfig], reason: str) -> None:
        """Have just these instances. One whose configuration has changed leaves, and joins anew.

        Raises:
            TlsError: a certificate or key of a new one cannot be used; nothing has changed then.
        """
        kept = {c.name for c in wanted if c.name in self._instances and self._instances[c.name].config == c}
        made = [self._make(config) for config in wanted if config.name not in kept]
        for name in [name for name in self._instances if name not in kept]:
            self._let_go(self._instances.pop(name), reason)
        for instance in made:
            self._instances[instance.name] = instance
            self._watch(instance)
            log("instance_joins", instance=instance.name, reason=reason)

    def use(self, config: GatewayConfig) -> None:
        """Have the instances watched as another configuration says."""
        self.config = config
        for instance in (*self._instances.values(), *self.leaving):
            instance.judge_by(config)

    async def close(self) -> None:
        """Stop watching, and close every connection."""
        for task in (*self._watches.values(), *self._farewells):
            task.cancel()
        await asyncio.gather(*self._watches.values(), *self._farewells, return_exceptions=True)
        links = [link for i in (*self._instances.values(), *self.leaving) for link in i.pool.retire()]
        await close_links(links, self._hub)

    def _watch(self, instance: Instance) -> None:
        task = asyncio.get_running_loop().create_task(watch(instance, lambda: self.config.scrape_interval_s))
        task.add_done_callback(lambda task: _note_end(instance, task))
        self._watches[instance] = task

    def _let_go(self, instance: Instance, reason: str) -> None:
        log("instance_leaves", instance=instance.name, in_flight=instance.load.in_flight, reason=reason)
        instance.signal(Signal.DRAIN, reason)
        self.leaving.add(instance)
        task = asyncio.get_running_loop().create_task(self._say_farewell(instance))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _say_farewell(self, instance: Instance) -> None:
        try:
            async with asyncio.timeout(self.config.drain_timeout_s):
                while instance.load.in_flight:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            instance.cut("it has left and did not finish in time", is_death=False)
        self._watches.pop(instance).cancel()
        await close_links(instance.pool.retire(), self._hub)
        self.leaving.discard(instance)


def _note_end(instance: Instance, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log("watch_failed", instance=instance.name, error=repr(task.exception()))
