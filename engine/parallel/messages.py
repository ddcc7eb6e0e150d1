"""What rank 0 and another rank say to each other before the first step. Knows plain values only."""

from dataclasses import dataclass

from engine.config import EngineConfig


@dataclass(slots=True, frozen=True)
class Welcome:
    """What a rank that has joined is to serve; `device` says only whether on GPUs."""

    config: EngineConfig


@dataclass(slots=True, frozen=True)
class Equipment:
    """The names (UUIDs) of the GPUs that a rank sees, in the order of their numbers; none where none are used."""

    gpus: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Seat:
    """The device that is the rank's own, as `EngineConfig` has it, and the port of the store where all ranks meet."""

    device: str
    store_port: int


@dataclass(slots=True, frozen=True)
class Loaded:
    """The rank has its part of the model."""
