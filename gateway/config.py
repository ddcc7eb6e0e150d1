"""The gateway's configuration: read from YAML or JSON, checked as a whole, refused as a whole.

Knows fields and their limits. Does not know the command line.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from gateway.address import PATTERN, split_address, unix_path
from gateway.discovery.config import DiscoveryConfig
from gateway.hedge_plan import HedgingConfig
from gateway.observe.config import ObserveConfig
from gateway.openai_config import OpenAiConfig
from gateway.patience import Patience
from gateway.routing.config import RoutingConfig
from gateway.safety.config import SafetyConfig
from gateway.strict import ExistingFile, OfFiles, Strict
from gateway.wire.limits import DEFAULT_LIMITS, Limits

MAX_PORT = 65535

try:  # ten times as fast: a file of 10,000 tenants takes the other 6 s
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # built without libyaml
    from yaml import SafeLoader


def _has_port(address: str) -> str:
    if unix_path(address) is None and split_address(address)[1] > MAX_PORT:
        raise ValueError(f"{address} has a port above {MAX_PORT}")
    return address


Address = Annotated[str, StringConstraints(pattern=PATTERN), AfterValidator(_has_port)]
TcpAddress = Annotated[str, StringConstraints(pattern=PATTERN.replace("unix:/\\S+|", "")), AfterValidator(_has_port)]


class ConfigError(Exception):
    """A configuration that cannot be used; the message names every field that is wrong."""


class TlsConfig(OfFiles):
    """TLS of the gateway's gRPC port; with `client_ca`, clients must show a certificate that it signed."""

    reads_files = ("certificate", "key", "client_ca")
    certificate: ExistingFile = Field(description="PEM file of our certificate")
    key: ExistingFile = Field(description="PEM file of its key")
    client_ca: ExistingFile | None = Field(default=None, description="PEM file; absent: clients show no certificate")


class InstanceTlsConfig(OfFiles):
    """TLS towards an instance: who must have signed its certificate, and what we show for ourselves."""

    reads_files = ("ca", "certificate", "key")
    ca: ExistingFile | None = Field(
        default=None, description="PEM file of who signs instances' certificates; absent: the system's"
    )
    certificate: ExistingFile | None = Field(default=None, description="PEM file that we show")
    key: ExistingFile | None = Field(default=None, description="PEM file of its key")
    server_name: str | None = Field(default=None, description="name in the instance's certificate; absent: its host")


class InstanceConfig(Strict):
    """One tritonserver.

    No keepalive by default: gRPC servers punish pings that come more often than every 300 s, and the heartbeat in its
    metrics tells sooner.
    """

    grpc: Address = Field(description="host:port, [host]:port or unix:/path of its gRPC port")
    metrics: TcpAddress | None = Field(
        default=None, description="host:port of its metrics; absent: neither its load nor its heartbeat is known"
    )
    name: str = Field(default="", description="unique; absent: its gRPC address")
    pool: str = Field(
        default="", description="instances of the same parallelism, for routing.levels and routing.outliers"
    )
    group: str = Field(default="", description="for routing.split")
    tls: InstanceTlsConfig | None = None
    patience: Patience = Patience(message_s=None, keepalive_s=None)

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("name"):
            return data | {"name": data.get("grpc", "")}
        return data


class GatewayConfig(Strict):
    """Everything that can be set."""

    grpc_address: Address = Field(
        default="127.0.0.1:8001", description="host:port, [host]:port or unix:/path to listen at; port 0: any"
    )
    http_address: TcpAddress = Field(
        default="127.0.0.1:8080", description="host:port for OpenAI's API, metrics, health and dashboard"
    )
    tls: TlsConfig | None = None
    instances: tuple[InstanceConfig, ...] = ()
    discovery: DiscoveryConfig | None = None
    queue_timeout_s: float = Field(default=5.0, ge=0, description="seconds that a request waits for a usable instance")
    heartbeat_timeout_s: float = Field(
        default=3.0, gt=0, description="seconds after which an instance whose heartbeat stands still is dead"
    )
    scrape_interval_s: float = Field(
        default=0.1, gt=0, description="seconds between two reads of an instance's metrics"
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="seconds that open requests have at the end, or when their instance leaves"
    )
    max_retries: int = Field(
        default=2, ge=0, description="times a request is sent again that has failed before its first answer"
    )
    max_deaths: int = Field(
        default=1,
        ge=0,
        description="times in a row a request is sent on whose instance ended before it answered",
    )
    resume: bool = Field(default=True, description="whether a stream whose instance dies goes on at another")
    stall_timeout_s: float | None = Field(
        default=60.0, gt=0, description="seconds of silence after which a stream goes on elsewhere; null: never"
    )
    hedging: HedgingConfig | None = None
    max_request_bytes: int = Field(default=64 * 2**20, gt=0, description="bytes of one request")
    routing: RoutingConfig = RoutingConfig()
    safety: SafetyConfig = SafetyConfig()
    max_connections: int = Field(default=10_000, gt=0, description="clients' connections, of each worker")
    limits: Limits = DEFAULT_LIMITS
    patience: Patience = Patience()
    observe: ObserveConfig = ObserveConfig()
    openai: OpenAiConfig = OpenAiConfig()
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes on the gRPC port",
    )

    @model_validator(mode="after")
    def _check(self) -> "GatewayConfig":
        if not self.instances and self.discovery is None:
            raise ValueError("there are neither instances nor discovery")
        _check_names(self.instances)
        if self.discovery is None:
            self._check_labels()
        return self

    def _check_labels(self) -> None:
        pools = {instance.pool for instance in self.instances}
        levels = self.routing.levels
        if levels is not None and not {levels.low_pool, levels.high_pool} <= pools:
            raise ValueError(f"levels name {levels.low_pool!r} and {levels.high_pool!r}; the pools are {sorted(pools)}")
        groups = {instance.group for instance in self.instances}
        if unknown := sorted(self.routing.split.keys() - groups):
            raise ValueError(f"split names the group {unknown[0]!r}; there are {sorted(groups)}")


def parse_instance(text: str) -> dict[str, str]:
    """Return the fields of `HOST:GRPC_PORT[,HOST:METRICS_PORT]`."""
    grpc, _, metrics = text.partition(",")
    return {"grpc": grpc} | ({"metrics": metrics} if metrics else {})


def make_config(fields: object, context: Mapping[str, Path] | None = None) -> GatewayConfig:
    """Check fields as read from the command line or a file, whose `context` is that of `in_folder_of`.

    Raises:
        ConfigError: one or more are wrong.
    """
    try:
        return GatewayConfig.model_validate(fields, context=context)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def make_instances(items: object, context: Mapping[str, Path] | None = None) -> tuple[InstanceConfig, ...]:
    """Check a list of instances as read from a file, whose `context` is that of `in_folder_of`.

    Raises:
        ConfigError: one or more are wrong.
    """
    try:
        instances = TypeAdapter(tuple[InstanceConfig, ...]).validate_python(items, context=context)
        _check_names(instances)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return instances


class _Loader(SafeLoader):  # pyright: ignore[reportGeneralTypeIssues]
    """YAML 1.2's booleans, `true` and `false`: `on` is a field of content rules; and no field twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, of whose equal fields the others would be lost in silence."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(names)) < len(names):
            twice = next(name for number, name in enumerate(names) if name in names[:number])
            raise yaml.constructor.ConstructorError(None, None, f"the field {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_document(path: Path) -> object:
    """Return what a YAML or JSON file holds.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except Exception as error:  # of YAML too: 2023-13-45 is a date without such a month
        raise ConfigError(f"{path}: {error}") from error


def read_fields(path: Path) -> dict[str, object]:
    """Return the fields of a YAML or JSON file, unchecked.

    Raises:
        ConfigError: it cannot be read or is no mapping.
    """
    fields = read_document(path)
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: not a mapping of fields")
    return fields


def _check_names(instances: Sequence[InstanceConfig]) -> None:
    names = [instance.name for instance in instances]
    if len(set(names)) < len(names):
        raise ValueError("two instances have the same name")


def explain(error: ValidationError) -> str:
    """Return what is wrong with each field, in one line."""
    return "; ".join(_explain_one(item) for item in error.errors())


def _explain_one(item: Mapping[str, Any]) -> str:
    where = ".".join(map(str, item["loc"])) or "configuration"
    value = item["input"]
    given = f", not {value!r}" if isinstance(value, str | int | float) and repr(value) not in item["msg"] else ""
    return f"{where}: {item['msg']}{given}"
