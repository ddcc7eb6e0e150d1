"""Changes while the gateway runs: of its configuration, and of the instances that discovery finds.

Knows what is to be applied where. Does not know how a configuration is read or instances are found.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.discovery.config import DiscoveryConfig, DnsDiscovery, FileDiscovery
from gateway.discovery.kubernetes import watch_slices
from gateway.discovery.sources import Instances, watch_dns, watch_file
from gateway.log import log, log_defect
from gateway.reload import reload
from gateway.strict import files_read_by
from gateway.tls import TlsError
from gateway.workers.table import TableFull

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.fleet import Fleet

POLL_SECONDS = 1.0
Prepare = Callable[["GatewayConfig"], Callable[[], None]]  # refuses, or returns what puts it in force


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """How the configuration is read again, and the file it depends on, if there is one.

    `read` raises ConfigError where it is invalid.
    """

    read: Callable[[], GatewayConfig]
    path: Path | None


class Updates:
    """Keeps a running gateway to its configuration and its instances to what is found."""

    def __init__(self, config: GatewayConfig, prepare: Sequence[Prepare], fleet: Fleet) -> None:
        """Take the configuration in force, and what `prepare`s the parts for another one."""
        self.config = config
        self._prepare = prepare
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

    async def reload_aside(self, source: ConfigSource) -> None:
        """Do so without holding up the loop while it is read: with 10,000 tenants that takes a second."""
        reading = asyncio.ensure_future(asyncio.to_thread(source.read))
        await asyncio.wait({reading})
        self.config = reload(self.config, reading.result, self._apply)  # which may have changed meanwhile

    async def watch_config(self, source: ConfigSource, path: Path) -> None:
        """Reload whenever the bytes change of the source's file, or of one that it names, for ever."""
        seen = _contents(path, self.config)
        while True:
            await asyncio.sleep(POLL_SECONDS)
            content = await asyncio.to_thread(_contents, path, self.config)
            if content != seen:
                seen = content
                await self.reload_aside(source)

    async def close(self) -> None:
        """Stop looking."""
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.gather(self._discovery, return_exceptions=True)

    def _apply(self, config: GatewayConfig) -> None:
        commits = [prepare(config) for prepare in self._prepare]
        before, self.config = self.config, config
        try:
            self._set_instances("configured")
        except Exception:
            self.config = before
            raise
        self._fleet.use(config)
        for commit in commits:
            commit()
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


def _contents(path: Path, config: GatewayConfig) -> dict[Path, bytes]:
    """Return what is in the configuration's file, and in those that it names, as far as they can be read."""
    found: dict[Path, bytes] = {}
    for each in (path, *files_read_by(config)):
        with contextlib.suppress(OSError):
            found[each] = each.read_bytes()
    return found
