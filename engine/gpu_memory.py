"""How much of a GPU's memory the KV cache gets.

Knows bytes. Does not know models or blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.errors import ModelError


@dataclass(slots=True, frozen=True)
class MemoryUse:
    """What is known once the weights are loaded and the largest step has been tried; in bytes.

    Attributes:
        total: the device's memory.
        free: of which nobody uses, with the weights in place and what a step leaves behind for good: kernels, and the
            buffers of collectives.
        step_peak: what the largest step takes beside weights and cache.
    """

    total: int
    free: int
    step_peak: int


def measure(device: torch.device, run_largest_step: Callable[[], object]) -> MemoryUse:
    """Run the largest step and see what it takes."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest_step()
    torch.cuda.synchronize(device)
    step_peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return MemoryUse(total, free, step_peak)


def cache_bytes(use: MemoryUse, share: float) -> int:
    """Return what is left for the cache if at most `share` of the device's memory is to be in use.

    What others use of the device counts as in use.

    Raises:
        ModelError: nothing is left.
    """
    left = int(use.total * share) - (use.total - use.free) - use.step_peak
    if left <= 0:
        raise ModelError(
            f"gpu_memory_share={share} of {use.total} bytes leaves nothing for the KV cache: {use.total - use.free} "
            f"bytes are in use with the weights loaded, and a step takes {use.step_peak} more"
        )
    return left
