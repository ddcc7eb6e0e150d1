"""What rank 0 and another rank say to each other before the first step. Knows plain values only."""

from dataclasses import dataclass

from engine.config import EngineConfig


@dataclass(slots=True, frozen=True)
class Welcome:
    """What a rank that has joined is to serve, and the port of the store at which all ranks meet."""

    config: EngineConfig
    store_port: int


@dataclass(slots=True, frozen=True)
class Loaded:
    """The rank has its part of the model."""
