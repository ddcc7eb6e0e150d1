"""What can be set about finding instances.

Knows fields. Does not know how anything is looked up.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gateway.strict import Strict

Port = Annotated[int, Field(gt=0, lt=65536)]


class FileDiscovery(Strict):
    """A YAML or JSON file with a list of instances, as under `instances`."""

    kind: Literal["file"]
    path: Path
    interval_s: float = Field(default=1.0, gt=0)


class DnsDiscovery(Strict):
    """One instance for each address of a name, as of a headless service."""

    kind: Literal["dns"]
    host: str
    grpc_port: Port = 8001
    metrics_port: Port | None = 8002
    interval_s: float = Field(default=5.0, gt=0)


class KubernetesDiscovery(Strict):
    """One instance for each ready endpoint of a service, by its EndpointSlices."""

    kind: Literal["kubernetes"]
    service: str
    namespace: str | None = None  # None: the gateway's own
    grpc_port: Port = 8001
    metrics_port: Port | None = 8002
    api: str = "https://kubernetes.default.svc"
    account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # holds token, ca.crt and namespace


DiscoveryConfig = Annotated[FileDiscovery | DnsDiscovery | KubernetesDiscovery, Field(discriminator="kind")]
