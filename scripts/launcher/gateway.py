"""The gateway process in front of the instances.

Knows its command line and addresses. Does not know how it routes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.launcher.instance import TritonInstance, child_environment
from scripts.launcher.process import Child

CUT_SECONDS = 3.0


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
    ) -> None:
        self.options = options
        command = gateway_command(options, instances)
        super().__init__("the gateway", command, child_environment(env), log_dir / "gateway.log", f"{tag}gateway-")

    @property
    def grpc_url(self) -> str:
        """Where clients of this machine speak gRPC, as `host:port`."""
        return f"{_reachable(self.options.host)}:{self.options.grpc_port}"

    @property
    def http_url(self) -> str:
        """Where clients of this machine speak HTTP, as `host:port`."""
        return f"{_reachable(self.options.host)}:{self.options.http_port}"

    def stop(self, timeout: float = CUT_SECONDS) -> None:
        """Let open requests finish for `timeout` seconds, then cut them, then remove what is left."""
        if self.is_running:
            self.terminate()
            self.wait(timeout)
        super().stop(CUT_SECONDS)


def gateway_command(options: GatewayOptions, instances: Sequence[TritonInstance]) -> list[str]:
    """Return the command line of the gateway."""
    command = [sys.executable, "-m", "gateway"]
    command += ["--grpc-address", f"{options.host}:{options.grpc_port}"]
    command += ["--http-address", f"{options.host}:{options.http_port}"]
    for instance in instances:
        command += ["--instance", f"{instance.grpc_url},{instance.metrics_url}"]
    return [*command, *options.arguments]


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - compares, never listens
