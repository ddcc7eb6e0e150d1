"""Which device a model computes on, and in which type.

Knows the configuration's words, the checkpoint's type and how many GPUs there are. Does not know memory or kernels.
"""

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True, frozen=True)
class Placement:
    """A device, and the type of weights, activations and, unless they are quantized, keys and values."""

    device: torch.device
    dtype: torch.dtype


ON_HOST = Placement(torch.device("cpu"), torch.float32)


def num_gpus() -> int:
    """Return how many GPUs this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that this process may use, in the order of their numbers."""
    return tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(num_gpus()))


def choose_placement(config: EngineConfig, checkpoint_dtype: str, gpus: int) -> Placement:
    """Choose device and type.

    Args:
        config: `device` `auto` takes the first GPU where there is one; `dtype` `auto` takes the checkpoint's type on a
            GPU and float32 on the CPU, whose kernels know no other.
        checkpoint_dtype: as `config.json` says it.
        gpus: how many there are.

    Raises:
        ModelError: there is no such device, or it does not compute in that type.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cpu":
        if config.dtype not in {"auto", "float32"}:
            raise ModelError(f"dtype {config.dtype} needs a GPU; on the CPU the engine computes in float32")
        return Placement(torch.device("cpu"), torch.float32)
    index = int(name.partition(":")[2] or 0)
    if index >= gpus:
        raise ModelError(f"device {config.device} does not exist; this process sees {gpus} GPUs")
    dtype = checkpoint_dtype if config.dtype == "auto" else config.dtype
    if dtype not in DTYPES:
        raise ModelError(f"the checkpoint's type {dtype} is none of {', '.join(DTYPES)}; give dtype one of them")
    return Placement(torch.device("cuda", index), DTYPES[dtype])
