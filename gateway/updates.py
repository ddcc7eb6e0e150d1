"""Changes while the gateway runs: of its configuration, and of the instances that discovery finds.

Knows what is to be applied where. Does not know how a configuration is read or instances are found.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.discovery.config import DiscoveryConfig, DnsDiscovery, FileDiscovery
from gateway.discovery.kubernetes import watch_slices
from gateway.discovery.sources import Instances, watch_dns, watch_file
from gateway.log import log, log_defect
from gateway.reload import reload
from gateway.tls import TlsError
from gateway.workers.table import TableFull

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.dispatcher import Dispatcher
    from gateway.fleet import Fleet

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """How the configuration is read again, and the file it depends on, if there is one.

    `read` raises ConfigError where it is invalid.
    """

    read: Callable[[], GatewayConfig]
    path: Path | None


class Updates:
    """Keeps a running gateway to its configuration and its instances to what is found."""

    def __init__(self, config: GatewayConfig, dispatcher: Dispatcher, fleet: Fleet) -> None:
        """Take the configuration in force."""
        self.config = config
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._found: Instances = ()
        self._discovery: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Have the configured instances, and begin to look for more."""
        self._set_instances("configured")
        self._start_discovery()

    def reload(self, source: ConfigSource) -> None:
        """Read the configuration again and apply it, or log why not."""
        self.config = reload(self.config, source.read, self._apply)

    async def watch_config(self, source: ConfigSource, path: Path) -> None:
        """Reload whenever the bytes of the source's file change, for ever."""
        seen = _content(path)
        while True:
            await asyncio.sleep(POLL_SECONDS)
            content = await asyncio.to_thread(_content, path)
            if content != seen:
                seen = content
                self.reload(source)

    async def close(self) -> None:
        """Stop looking."""
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.gather(self._discovery, return_exceptions=True)

    def _apply(self, config: GatewayConfig) -> None:
        before, self.config = self.config, config
        try:
            self._set_instances("configured")
        except (TlsError, TableFull):
            self.config = before
            raise
        self._fleet.config = config
        self._dispatcher.apply(config)
        if config.discovery != before.discovery:
            self._found = ()
            self._start_discovery()

    def _set_instances(self, reason: str) -> None:
        own = {config.name for config in self.config.instances}
        found = [config for config in self._found if config.name not in own]
        self._fleet.apply([*self.config.instances, *found], reason)

    def _start_discovery(self) -> None:
        if self._discovery is not None:
            self._discovery.cancel()
            self._discovery = None
        if self.config.discovery is not None:
            self._discovery = asyncio.get_running_loop().create_task(self._follow(self.config.discovery))

    async def _follow(self, config: DiscoveryConfig) -> None:
        while True:
            try:
                await self._take_from(config)
            except Exception as error:  # noqa: BLE001 - whatever a source says, looking goes on
                log_defect("discovery_failed", error, source=config.kind)
            await asyncio.sleep(POLL_SECONDS)

    async def _take_from(self, config: DiscoveryConfig) -> None:
        async for found in _source(config):
            before, self._found = self._found, found
            try:
                self._set_instances(f"found by {config.kind}")
            except (TlsError, TableFull) as error:
                log("discovery_failed", source=config.kind, reason=str(error))
                self._found = before


def _source(config: DiscoveryConfig) -> AsyncIterator[Instances]:
    match config:
        case FileDiscovery():
            return watch_file(config)
        case DnsDiscovery():
            return watch_dns(config)
        case _:
            return watch_slices(config)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
