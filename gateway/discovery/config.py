"""What can be set about finding instances.

Knows fields. Does not know how anything is looked up.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gateway.strict import AnyPath, Strict

Port = Annotated[int, Field(gt=0, lt=65536)]


class FileDiscovery(Strict):
    """A YAML or JSON file with a list of instances, as under `instances`."""

    kind: Literal["file"] = Field(description="where instances are found")
    path: AnyPath = Field(description="the file")
    interval_s: float = Field(default=1.0, gt=0, description="seconds between two looks")


class DnsDiscovery(Strict):
    """One instance for each address of a name, as of a headless service."""

    kind: Literal["dns"] = Field(description="where instances are found")
    host: str = Field(description="the name")
    grpc_port: Port = Field(default=8001, description="of every instance")
    metrics_port: Port | None = Field(default=8002, description="of every instance; null: none")
    interval_s: float = Field(default=5.0, gt=0, description="seconds between two look-ups")


class KubernetesDiscovery(Strict):
    """One instance for each ready endpoint of a service, by its EndpointSlices."""

    kind: Literal["kubernetes"] = Field(description="where instances are found")
    service: str = Field(description="name of the service")
    namespace: str | None = Field(default=None, description="absent: the gateway's own")
    grpc_port: Port = Field(default=8001, description="of every instance")
    metrics_port: Port | None = Field(default=8002, description="of every instance; null: none")
    api: str = Field(default="https://kubernetes.default.svc", description="the API server")
    account: AnyPath = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="folder of token, ca.crt and namespace",
    )


DiscoveryConfig = Annotated[FileDiscovery | DnsDiscovery | KubernetesDiscovery, Field(discriminator="kind")]
