"""Ranks as actors of a Ray cluster, spread over its nodes.

Knows Ray: a placement group with one bundle a rank, and an actor in each. Does not know what ranks do. Rank 0 is the
core, which runs on a node of the cluster; every node has this project and the model at the same paths.

Actors end with the core: Ray kills what a driver leaves behind, and their links end.
"""

import logging
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from engine.config import EngineConfig
from engine.errors import EngineUnavailable
from engine.parallel.executor import Invitation

ROOT = Path(__file__).resolve().parents[2]


class RankActor:
    """One rank; a process of its own."""

    def serve(self, invitation: Invitation, rank: int) -> None:
        """Join and compute until rank 0 leaves."""
        from engine.parallel.rank_process import serve_rank

        serve_rank(invitation, rank)


class RayExecutor:
    """Starts and ends actors."""

    def __init__(self, config: EngineConfig) -> None:
        """Connect to the cluster.

        Raises:
            EngineUnavailable: there is none at that address.
        """
        self._patience = config.rank_start_seconds
        self._cpus = config.num_threads or 1
        self._gpus = int(config.device == "cuda")
        self._group: Any = None
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        try:
            ray.init(
                address=config.ray_address or "auto",
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                logging_level=logging.WARNING,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineUnavailable(f"no Ray cluster at {config.ray_address or 'auto'!r}: {error}") from None

    @property
    def address(self) -> tuple[str, int]:
        """This node's address in the cluster."""
        return ray.util.get_node_ip_address(), 0

    def start(self, invitation: Invitation, num_ranks: int) -> None:
        """Wait for room, on as many nodes as there are, and start the actors."""
        bundle: dict[str, float] = {"CPU": self._cpus}
        if self._gpus:
            bundle["GPU"] = self._gpus
        self._group = placement_group([bundle] * (num_ranks - 1), strategy="SPREAD")
        if not self._group.wait(self._patience):
            raise EngineUnavailable(
                f"in {self._patience:g} s the Ray cluster found no room for {num_ranks - 1} ranks of {self._cpus} CPUs "
                f"and {self._gpus} GPUs"
            )
        actor_class: Any = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(RankActor)
        for index in range(num_ranks - 1):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            self._actors.append(actor_class.options(scheduling_strategy=place).remote())
            self._runs.append(self._actors[-1].serve.remote(invitation, index + 1))

    def failure(self) -> str | None:
        """Name an actor that has ended."""
        ended = ray.wait(self._runs, timeout=0)[0] if self._runs else []
        for run in ended:
            rank = self._runs.index(run) + 1
            try:
                ray.get(run)
            except RayError as error:
                return f"rank {rank} failed: {str(error).strip().splitlines()[-1]}"
            return f"rank {rank} has left"
        return None

    def stop(self) -> None:
        """End the actors, give their places back and leave the cluster."""
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        ray.shutdown()
