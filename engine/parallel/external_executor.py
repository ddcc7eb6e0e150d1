"""Ranks that somebody else starts, such as torchrun or a batch system.

Knows where they are awaited. Does not know who starts them, or how to end them: their links do.
"""

import logging

from engine.config import EngineConfig
from engine.parallel.executor import KEY_VARIABLE, Invitation

logger = logging.getLogger(__name__)


class ExternalExecutor:
    """Waits for ranks at a fixed address, with a key that whoever starts them knows."""

    def __init__(self, config: EngineConfig) -> None:
        """Take the address, which the configuration has checked."""
        host, _, port = config.rank_address.rpartition(":")
        self.address = host, int(port)

    def start(self, invitation: Invitation, num_ranks: int) -> None:
        """Say what is awaited."""
        command = f"torchrun --nproc-per-node {num_ranks - 1} --max-restarts 1000 -m engine.parallel.rank_process"
        logger.warning("awaiting ranks: %s=... %s %s %d", KEY_VARIABLE, command, invitation.host, invitation.port)

    def failure(self) -> str | None:
        """Nothing is known of ranks that have not joined."""
        return None

    def stop(self) -> None:
        """Leave them alone: they have lost their link."""
