"""The gateway process in front of the instances.

Knows its command line, configuration and addresses. Does not know how it routes.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.routing.config import RoutingConfig
from scripts.launcher.instance import TritonInstance, child_environment
from scripts.launcher.process import Child

CUT_SECONDS = 3.0
HEALING_SECONDS = 30.0  # that requests wait where all instances are down: a killed one is ready again after 4 to 15 s


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Where the gateway listens, and further arguments for it."""

    host: str
    grpc_port: int
    http_port: int
    arguments: tuple[str, ...] = ()


class GatewayProcess(Child):
    """`python -m gateway`, and the addresses it keeps over restarts."""

    def __init__(
        self,
        options: GatewayOptions,
        instances: Sequence[TritonInstance],
        env: Mapping[str, str],
        log_dir: Path,
        tag: str,
        *,
        routing: RoutingConfig = RoutingConfig(),  # noqa: B008 - never changes
    ) -> None:
        self.options = options
        self.config = log_dir / "gateway.json"
        self._fields = gateway_fields(options, instances, routing)
        command = [sys.executable, "-m", "gateway", "--config", str(self.config.resolve()), *options.arguments]
        super().__init__("the gateway", command, child_environment(env), log_dir / "gateway.log", f"{tag}gateway-")

    @property
    def grpc_url(self) -> str:
        """Where clients of this machine speak gRPC, as `host:port`."""
        return f"{_reachable(self.options.host)}:{self.options.grpc_port}"

    @property
    def http_url(self) -> str:
        """Where clients of this machine speak HTTP, as `host:port`."""
        return f"{_reachable(self.options.host)}:{self.options.http_port}"

    def start(self) -> None:
        """Write the configuration and start the gateway with it."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(json.dumps(self._fields, indent=1) + "\n", encoding="utf-8")
        super().start()

    def stop(self, timeout: float = CUT_SECONDS) -> None:
        """Let open requests finish for `timeout` seconds, then cut them, then remove what is left."""
        if self.is_running:
            self.terminate()
            self.wait(timeout)
        super().stop(CUT_SECONDS)


def gateway_fields(
    options: GatewayOptions, instances: Sequence[TritonInstance], routing: RoutingConfig
) -> dict[str, Any]:
    """Return the gateway's configuration."""
    return {
        "grpc_address": f"{options.host}:{options.grpc_port}",
        "http_address": f"{options.host}:{options.http_port}",
        "instances": [
            {"grpc": instance.grpc_url, "metrics": instance.metrics_url, "pool": instance.pool}
            for instance in instances
        ],
        "queue_timeout_s": HEALING_SECONDS,
        "routing": routing.model_dump(mode="json", exclude_unset=True),
    }


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - compares, never listens
