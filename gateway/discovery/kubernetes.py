"""Lists of instances from a service's EndpointSlices (discovery.k8s.io/v1), by list and watch.

Knows the API server's two answers and a service account's files. Does not know instances beyond their addresses.

Source: Kubernetes API concepts, "Efficient detection of changes"; after any end of a watch comes a new list.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from gateway.discovery.http_lines import HttpError, read_lines
from gateway.discovery.sources import Instances, at_host
from gateway.log import log

if TYPE_CHECKING:
    from gateway.discovery.config import KubernetesDiscovery

RETRY_SECONDS = 1.0
WATCH_SECONDS = 240
LIST_SECONDS = 10.0


async def watch_slices(config: KubernetesDiscovery) -> AsyncGenerator[Instances, None]:
    """Yield the ready endpoints of a service, again each time these change."""
    seen: Instances | None = None
    while True:
        try:
            async with aclosing(_follow(config)) as states:
                async for slices in states:
                    instances = instances_of(slices, config)
                    if instances != seen:
                        seen = instances
                        yield instances
        except (OSError, ValueError, KeyError, HttpError, TimeoutError) as error:
            log("discovery_failed", source=f"service {config.service}", reason=repr(error))
        await asyncio.sleep(RETRY_SECONDS)  # a server that ends each watch at once is not to be flooded with lists


def instances_of(slices: Mapping[str, Any], config: KubernetesDiscovery) -> Instances:
    """Return an instance for each ready endpoint in any slice; one without a verdict is ready, as the API says.

    A pod of a dual-stack service is in a slice of each family: it is one instance, at its IPv4 address. An endpoint's
    addresses are all the same to a client, as the API says; the first one is used. One without any is logged and passed
    over.
    """
    hosts: dict[str, str] = {}  # by pod, where that is told
    for each in sorted(slices.values(), key=lambda item: item.get("addressType") == "IPv6"):
        for endpoint in each.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                pod = endpoint.get("targetRef") or {}
                if not endpoint.get("addresses"):
                    log("endpoint_without_address", service=config.service, endpoint=pod.get("name") or "?")
                    continue
                host = endpoint["addresses"][0]
                hosts.setdefault(pod.get("uid") or host, host)
    return tuple(at_host(host, config.grpc_port, config.metrics_port) for host in sorted(set(hosts.values())))


async def _follow(config: KubernetesDiscovery) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the slices by name, first as listed, then after each change, until the watch ends."""
    namespace = config.namespace or (config.account / "namespace").read_text(encoding="utf-8").strip()
    base = f"{config.api}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    query = f"labelSelector=kubernetes.io%2Fservice-name%3D{config.service}"
    headers = {"authorization": f"Bearer {(config.account / 'token').read_text(encoding='utf-8').strip()}"}
    tls = ssl.create_default_context(cafile=config.account / "ca.crt") if config.api.startswith("https:") else None
    async with asyncio.timeout(LIST_SECONDS):
        listed = json.loads(b"".join([line async for line in read_lines(f"{base}?{query}", headers, tls)]))
    slices = {item["metadata"]["name"]: item for item in listed.get("items") or ()}
    yield slices
    version = listed["metadata"]["resourceVersion"]
    url = f"{base}?{query}&watch=1&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}"
    async with aclosing(read_lines(url, headers, tls)) as lines:
        async for line in lines:
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise HttpError(f"the watch ended: {event['object'].get('message')}")
            _take(slices, event)
            yield slices


def _take(slices: dict[str, Any], event: Mapping[str, Any]) -> None:
    name = event["object"]["metadata"]["name"]
    if event["type"] == "DELETED":
        slices.pop(name, None)
    elif event["type"] in {"ADDED", "MODIFIED"}:
        slices[name] = event["object"]
