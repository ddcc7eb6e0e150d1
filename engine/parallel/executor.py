"""Who starts and ends the ranks other than rank 0, which is the engine core itself.

Knows what every way of starting ranks has in common. Does not know steps: once ranks have joined, rank 0 talks to them
over its links (`engine.parallel.links`), and they compute together (`engine.parallel.collectives`).
"""

from dataclasses import dataclass
from typing import Protocol

from engine.config import EngineConfig
from engine.errors import ModelError

KEY_VARIABLE = "SCALELLM_RANK_KEY"


@dataclass(slots=True, frozen=True)
class Invitation:
    """Where ranks join, and the key that they must prove to have."""

    host: str
    port: int
    key: bytes


class Executor(Protocol):
    """One way of starting ranks; each rank calls `engine.parallel.rank_process.serve_rank`."""

    @property
    def address(self) -> tuple[str, int]:
        """Where rank 0 should listen; port 0 for any."""
        ...

    def start(self, invitation: Invitation, num_ranks: int) -> None:
        """Start ranks 1 to `num_ranks` - 1.

        Raises:
            EngineUnavailable: there is no room for them now.
        """
        ...

    def failure(self) -> str | None:
        """Say which started rank is not running any more, if one is known not to be."""
        ...

    def stop(self) -> None:
        """End all ranks, also those that hang; they have been told to leave by their links."""
        ...


def make_executor(config: EngineConfig, *, is_fresh: bool) -> Executor:
    """Return the executor that the configuration names; `is_fresh` as `LocalExecutor` has it.

    Raises:
        ModelError: it needs a package that is not installed.
        EngineUnavailable: it needs a cluster that is not there.
    """
    if config.rank_executor == "ray":
        try:
            from engine.parallel.ray_executor import RayExecutor
        except ImportError:
            raise ModelError("rank_executor 'ray' needs the package ray: pip install 'scalellm-triton[ray]'") from None
        return RayExecutor(config)
    if config.rank_executor == "external":
        from engine.parallel.external_executor import ExternalExecutor

        return ExternalExecutor(config)
    from engine.parallel.local_executor import LocalExecutor

    return LocalExecutor(is_fresh=is_fresh and config.device == "cpu")
