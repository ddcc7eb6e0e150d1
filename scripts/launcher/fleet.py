"""What a launch consists of: pools of equal replicas, and how the gateway routes among them.

Knows the fields of a pools file and which variables a pool's instances get. Does not know processes or the machine.

Invariants:
1. Pools have different names, and workload levels name pools that exist.
2. A pool's settings are ones that the engine has.
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError, model_validator

from engine.config import ENV_PREFIX, EngineConfig
from gateway.config import ConfigError, explain, read_fields
from gateway.routing.config import RoutingConfig
from gateway.strict import Strict, in_folder_of
from scripts.launcher.errors import LaunchError

THREADS_ENV = f"{ENV_PREFIX}NUM_THREADS"
OWN_FIELDS = {"model": "--model", "tensor_parallel": "tp", "expert_parallel": "ep", "num_threads": "threads"}
CURE = "see `pools` in docs/protocol.md"

PoolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$")]


class Pool(Strict):
    """Equal replicas, each an instance of tp x ep ranks."""

    name: PoolName = Field(default="", description="what levels call it")
    replicas: int = Field(default=1, ge=1, description="instances")
    tp: int = Field(default=1, ge=1, description="ranks that split each tensor, or each expert")
    ep: int = Field(default=1, ge=1, description="groups of ranks with experts of their own")
    threads: int | None = Field(default=None, ge=1, description="compute threads of each rank; absent: a fair share")
    options: dict[str, str | bool | int | float] = Field(
        default_factory=dict, description="further settings of the engine by name, such as kv_cache_gib"
    )

    @model_validator(mode="after")
    def _check(self) -> "Pool":
        known = {item.name for item in fields(EngineConfig)}
        for name in self.options:
            if name in OWN_FIELDS:
                raise ValueError(f"the option {name} is given as {OWN_FIELDS[name]}")
            if name not in known:
                raise ValueError(f"the engine has no option {name!r}")
        return self

    @property
    def num_ranks(self) -> int:
        """Processes that compute for one replica."""
        return self.tp * self.ep

    @property
    def title(self) -> str:
        """How a person is told of it."""
        return f"pool {self.name!r}" if self.name else "the instances"

    def variables(self) -> dict[str, str]:
        """Return the environment variables that make an instance one of this pool, threads aside."""
        settings: dict[str, object] = dict(self.options)
        if self.num_ranks > 1:
            settings |= {"tensor_parallel": self.tp, "expert_parallel": self.ep}
        return {ENV_PREFIX + name.upper(): str(value) for name, value in settings.items()}


class Fleet(Strict):
    """Every pool of a launch."""

    pools: tuple[Pool, ...] = Field(min_length=1)
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _check(self) -> "Fleet":
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError("two pools have the same name")
        levels = self.routing.levels
        if levels is not None and not {levels.low_pool, levels.high_pool} <= set(names):
            raise ValueError(f"levels name {levels.low_pool!r} and {levels.high_pool!r}; the pools are {sorted(names)}")
        return self

    @classmethod
    def of(cls, replicas: int, tp: int = 1, ep: int = 1, options: Mapping[str, str] | None = None) -> "Fleet":
        """Return a fleet of one pool, whose engines have these options."""
        return cls(pools=(Pool(replicas=replicas, tp=tp, ep=ep, options=dict(options or {})),))

    @property
    def num_instances(self) -> int:
        """Tritonservers of all pools."""
        return sum(pool.replicas for pool in self.pools)

    def busy_pools(self) -> tuple[tuple[Pool, ...], ...]:
        """Return which pools compute at the same time: with levels each by itself, without them all."""
        levels = self.routing.levels
        return tuple((pool,) for pool in self.pools) if levels is not None else (self.pools,)

    def variables(self, pool: Pool, num_cores: int) -> dict[str, str]:
        """Return the variables of a pool's instances; threads: its own, else the environment's, else a fair share."""
        beside = next(group for group in self.busy_pools() if pool in group)
        share = max(1, num_cores // sum(each.replicas * each.num_ranks for each in beside))
        threads = str(pool.threads) if pool.threads else os.environ.get(THREADS_ENV) or str(share)
        return {THREADS_ENV: threads, **pool.variables()}


def read_fleet(path: Path) -> Fleet:
    """Read a pools file.

    Raises:
        LaunchError: it cannot be read, or holds anything that is not right.
    """
    try:
        return Fleet.model_validate(read_fields(path), context=in_folder_of(path))
    except ConfigError as error:
        raise LaunchError(str(error), CURE) from None
    except ValidationError as error:
        raise LaunchError(f"{path}: {explain(error)}", CURE) from None


def engine_config(pool: Pool, model: Path, env: Mapping[str, str]) -> EngineConfig:
    """Return the settings that an instance of this pool will have; `env` is the launcher's environment.

    Raises:
        ModelError: the engine refuses them.
    """
    return EngineConfig.from_env({**env, **pool.variables()}, model=model)
