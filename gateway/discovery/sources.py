"""Lists of instances from a file or from DNS, whenever they change.

Knows how to look; a look that fails is logged, and the last list stays. Does not know Kubernetes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from gateway.config import ConfigError, InstanceConfig, make_instances, read_document
from gateway.log import log
from gateway.strict import in_folder_of

if TYPE_CHECKING:
    from gateway.discovery.config import DnsDiscovery, FileDiscovery

Instances = tuple[InstanceConfig, ...]


async def watch_file(config: FileDiscovery) -> AsyncGenerator[Instances, None]:
    """Yield the list in a file, again each time its bytes change to another valid one."""
    seen: bytes | None = None
    while True:
        try:
            content = await asyncio.to_thread(config.path.read_bytes)
            if content != seen:
                seen = content
                yield make_instances(read_document(config.path), in_folder_of(config.path))
        except (OSError, ConfigError) as error:
            log("discovery_failed", source=str(config.path), reason=str(error))
        await asyncio.sleep(config.interval_s)


async def watch_dns(config: DnsDiscovery) -> AsyncGenerator[Instances, None]:
    """Yield an instance for each address of a name, again each time these change."""
    seen: Instances | None = None
    while True:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                config.host, config.grpc_port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            hosts = sorted({str(address[0]) for *_, address in found})
            instances = tuple(at_host(host, config.grpc_port, config.metrics_port) for host in hosts)
            if instances != seen:
                seen = instances
                yield instances
        except OSError as error:
            log("discovery_failed", source=config.host, reason=str(error))
        await asyncio.sleep(config.interval_s)


def at_host(host: str, grpc_port: int, metrics_port: int | None) -> InstanceConfig:
    """Return the instance at an address, named after it."""
    written = f"[{host}]" if ":" in host else host
    metrics = None if metrics_port is None else f"{written}:{metrics_port}"
    return InstanceConfig(grpc=f"{written}:{grpc_port}", metrics=metrics)
