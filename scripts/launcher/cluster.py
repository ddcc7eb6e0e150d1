"""Several instances and the gateway as one thing that is started, asked whether it answers, and stopped.

Knows the order of things. Does not know how an unhealthy instance is told from a healthy one.

Invariants:
1. Ports are chosen once; a restarted process comes back at its address.
2. After `stop` nothing of the launch is left, also when a start failed half way.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scripts.launcher import paths
from scripts.launcher.client import CompletionError, LlmClient, Sampling, text_inputs
from scripts.launcher.errors import LaunchError
from scripts.launcher.fleet import Fleet
from scripts.launcher.gateway import GatewayOptions, GatewayProcess
from scripts.launcher.instance import HOST, InstanceOptions, TritonInstance
from scripts.launcher.leftovers import new_tag, sweep
from scripts.launcher.ports import free_ports, instance_ports
from scripts.launcher.process import Child
from scripts.launcher.tritonserver import TritonServer, find_tritonserver
from scripts.launcher.watchdog import Watchdog

READY_SECONDS = 300.0
POLL_SECONDS = 0.1
PROBE_PROMPT = "Once upon a time"
PROBE_SECONDS = 120.0


class Cluster:
    """Instances and a gateway; as a context manager it starts them, waits until they answer, and stops them."""

    def __init__(
        self,
        fleet: Fleet | int = 2,
        *,
        model: Path | None = None,
        env: Mapping[str, str] | None = None,
        repository: Path = paths.MODEL_REPOSITORY,
        server: TritonServer | None = None,
        with_gateway: bool = True,
        gateway: GatewayOptions | None = None,
        log_dir: Path = paths.LOG_DIR,
        ready_model: str = "llm",
        probe: bool = True,
        ready_timeout: float = READY_SECONDS,
        drain_timeout: float = 0.0,
    ) -> None:
        """Plan the launch; nothing is started yet.

        Args:
            fleet: the pools of tritonservers to start; a number means that many equal ones.
            model: the model's folder; None leaves it to the environment and the repository's default.
            env: further variables for all children.
            repository: the model repository all instances load.
            server: the tritonserver to run; None finds one.
            with_gateway: start the gateway too.
            gateway: where the gateway listens; None chooses free ports.
            log_dir: where the logs go.
            ready_model: the model that must be ready on each instance.
            probe: also wait for a real completion of one token from each instance and through the gateway.
            ready_timeout: seconds until a start counts as failed.
            drain_timeout: seconds that open requests get to finish at the end.
        """
        self.tag = new_tag()
        self.ready_model = ready_model
        self.probe = probe
        self.ready_timeout = ready_timeout
        self.drain_timeout = drain_timeout
        variables = dict(env or {})
        if model is not None:
            variables[paths.MODEL_ENV] = str(model.resolve())
        options = InstanceOptions(server or find_tritonserver(), repository.resolve(), variables, log_dir, self.tag)
        pools = Fleet.of(fleet) if isinstance(fleet, int) else fleet
        self.instances = plan_instances(pools, options)
        listen = gateway or _free_gateway()
        parts = (listen, self.instances, variables, log_dir, self.tag)
        self._gateway = GatewayProcess(*parts, routing=pools.routing) if with_gateway else None
        self._watchdog: Watchdog | None = None

    @property
    def gateway(self) -> GatewayProcess:
        """The gateway.

        Raises:
            RuntimeError: the cluster was made without one.
        """
        if self._gateway is None:
            raise RuntimeError("this cluster has no gateway")
        return self._gateway

    @property
    def children(self) -> list[Child]:
        """Every process of the cluster."""
        return [*self.instances, *([self._gateway] if self._gateway else [])]

    def __enter__(self) -> "Cluster":
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process, at once, with logs that begin anew."""
        self._watchdog = Watchdog(self.tag)
        for child in self.children:
            child.log.unlink(missing_ok=True)
            child.start()

    def wait_ready(self) -> None:
        """Wait until every instance, and then the gateway, truly answers.

        Raises:
            LaunchError: a process ended, or does not answer within the time.
        """
        deadline = time.monotonic() + self.ready_timeout
        for instance in self.instances:
            self._wait_for(instance, instance.grpc_url, deadline)
        if self._gateway is not None:
            self._wait_for(self._gateway, self._gateway.grpc_url, deadline)

    def stop(self) -> None:
        """Stop the gateway, which lets open requests finish, then the instances, then remove whatever is left."""
        if self._gateway is not None:
            self._gateway.stop(self.drain_timeout)
        for instance in self.instances:
            if instance.is_running:
                instance.terminate()
        for instance in self.instances:
            instance.stop()
        sweep(self.tag)
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    def _wait_for(self, child: Child, url: str, deadline: float) -> None:
        with LlmClient(url) as client:
            while not client.is_ready(self.ready_model):
                _check_alive(child, deadline)
                time.sleep(POLL_SECONDS)
            while self.probe and not _answers(client):
                _check_alive(child, deadline)
                time.sleep(POLL_SECONDS)


def plan_instances(fleet: Fleet, options: InstanceOptions) -> list[TritonInstance]:
    """Return the instances of every pool, each with its pool's variables and with ports of its own."""
    num_cores = len(os.sched_getaffinity(0))
    pools = [pool for pool in fleet.pools for _ in range(pool.replicas)]
    own = {pool.name: fleet.variables(pool, num_cores) for pool in fleet.pools}
    return [
        TritonInstance(index, ports, replace(options, env={**own[pool.name], **options.env}), pool.name)
        for index, (pool, ports) in enumerate(zip(pools, instance_ports(len(pools)), strict=True))
    ]


def _free_gateway() -> GatewayOptions:
    grpc_port, http_port = free_ports(2)
    return GatewayOptions(HOST, grpc_port, http_port)


def _answers(client: LlmClient) -> bool:
    try:
        inputs = text_inputs(PROBE_PROMPT, Sampling(max_tokens=1))
        return bool(list(client.stream(inputs, timeout=PROBE_SECONDS)))
    except CompletionError:
        return False


def _check_alive(child: Child, deadline: float) -> None:
    if not child.is_running:
        if refusal := child.refusal_in_log():
            raise LaunchError(refusal, f"give a model folder and settings that the engine can serve (log: {child.log})")
        raise LaunchError(
            f"{child.name} ended with exit code {child.exit_code} while starting:\n{child.trouble_in_log()}\n",
            f"read the lines above; all of them are in {child.log}",
        )
    if time.monotonic() > deadline:
        raise LaunchError(
            f"{child.name} does not answer in time; from its log:\n{child.trouble_in_log()}\n",
            f"read {child.log}; give --start-timeout more seconds for a large model",
        )
