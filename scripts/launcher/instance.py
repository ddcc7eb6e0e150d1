"""One tritonserver on the project's model repository.

Knows its command line, environment, ports and log. Does not know other instances, the gateway, or when to restart.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.launcher import paths
from scripts.launcher.libpython import find_library_folder, loader_path
from scripts.launcher.ports import InstancePorts
from scripts.launcher.process import Child
from scripts.launcher.tritonserver import TritonServer

HOST = "127.0.0.1"
EXIT_SECONDS = 5
STUB_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class InstanceOptions:
    """What all instances of a pool share.

    Attributes:
        server: the tritonserver to run.
        repository: the model repository.
        env: variables set over those of this process.
        log_dir: where each instance writes its log.
        tag: the launch's tag; an instance's own begins with it.
        arguments: further arguments for tritonserver.
    """

    server: TritonServer
    repository: Path
    env: Mapping[str, str]
    log_dir: Path
    tag: str
    arguments: tuple[str, ...] = ()


class TritonInstance(Child):
    """A tritonserver process and the addresses it keeps over restarts."""

    def __init__(self, index: int, ports: InstancePorts, options: InstanceOptions, pool: str = "") -> None:
        self.index = index
        self.ports = ports
        self.pool = pool
        tag = f"{options.tag}{index}-"
        command = instance_command(ports, options, tag)
        log = options.log_dir / f"instance-{index}.log"
        name = f"instance {index} ({pool})" if pool else f"instance {index}"
        super().__init__(name, command, child_environment(options.env), log, tag)

    @property
    def grpc_url(self) -> str:
        """Where the instance speaks gRPC, as `host:port`."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where the instance speaks HTTP, as `host:port`."""
        return f"{HOST}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the instance shows its metrics, as `host:port`."""
        return f"{HOST}:{self.ports.metrics}"

    def stop(self, timeout: float = EXIT_SECONDS + 5.0) -> None:
        """Ask the server to end its models in order, and remove what is left after `timeout` seconds."""
        super().stop(timeout)


def instance_command(ports: InstancePorts, options: InstanceOptions, tag: str) -> list[str]:
    """Return the command line of one tritonserver.

    The explicit control mode lets a model that died be unloaded and loaded again.
    """
    command = [
        str(options.server.executable),
        f"--model-repository={options.repository}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        "--grpc-header-forward-pattern=(?i)user-agent",  # tells the engine gRPC clients, who want chunks, from HTTP
        f"--http-address={HOST}",
        f"--http-port={ports.http}",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={HOST}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={tag}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_SECONDS}",
    ]
    if options.server.backend_directory is not None:
        command.append(f"--backend-directory={options.server.backend_directory}")
    return [*command, *options.arguments]


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, made to lead stubs to this Python, its packages and the project's own."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["LD_LIBRARY_PATH"] = loader_path(find_library_folder(), env.get("LD_LIBRARY_PATH", ""))
    env["PYTHONPATH"] = loader_path(paths.ROOT, env.get("PYTHONPATH", ""))
    env["PYTHONUNBUFFERED"] = "1"
    return env | dict(changes)
