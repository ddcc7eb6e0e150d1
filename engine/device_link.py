"""Arrays to the device and results back, without making the host wait for more than it must.

Knows tensors, streams and page-locked memory. Does not know what they hold.

Invariants:
1. `upload` does not wait for what the device computes: one copy of page-locked memory, on a stream of its own.
2. `Download.wait` is where the host waits, for that download only.
3. Page-locked memory comes from torch's allocator, which hands it out again only when the copies of it have ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

ALIGNMENT = 16  # bytes; what a tensor starts at within a packed copy


@dataclass(slots=True, frozen=True)
class Download:
    """Results on their way to the host; `ready` is None where they are there."""

    hosts: list[torch.Tensor]
    ready: torch.cuda.Event | None = None

    def wait(self) -> list[np.ndarray]:
        """Return the results once they have arrived."""
        if self.ready is not None:
            self.ready.synchronize()
        return [host.numpy() for host in self.hosts]


class DeviceLink(Protocol):
    """Moves tensors between the host and one device."""

    device: torch.device

    def upload(self, hosts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return contiguous host tensors on the device."""
        ...

    def download(self, tensors: Sequence[torch.Tensor]) -> Download:
        """Begin to bring tensors back; they must not be written again until they are."""
        ...


class HostLink:
    """The device is the host: nothing moves."""

    device = torch.device("cpu")

    def upload(self, hosts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the same tensors."""
        return list(hosts)

    def download(self, tensors: Sequence[torch.Tensor]) -> Download:
        """Return the same tensors, which are there already."""
        return Download(list(tensors))


class CudaLink:
    """One stream for each direction beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        """Make the streams."""
        self.device = device
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)

    def upload(self, hosts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return contiguous host tensors on the device, packed into one copy."""
        starts = np.cumsum([0, *(-(-host.nbytes // ALIGNMENT) * ALIGNMENT for host in hosts)]).tolist()
        packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
        for start, host in zip(starts, hosts, strict=False):
            packed.numpy()[start : start + host.nbytes] = host.numpy().reshape(-1).view(np.uint8)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            moved = torch.empty(starts[-1], dtype=torch.uint8, device=self.device)
            moved.copy_(packed, non_blocking=True)
        current.wait_stream(self._up)
        moved.record_stream(current)
        parts = (moved[start:end] for start, end in pairwise(starts))
        return [part[: host.nbytes].view(host.dtype).view(host.shape) for part, host in zip(parts, hosts, strict=True)]

    def download(self, tensors: Sequence[torch.Tensor]) -> Download:
        """Begin to copy tensors into page-locked memory, behind what computes them."""
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            hosts = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            for tensor in tensors:
                tensor.record_stream(self._down)
            ready = torch.cuda.Event()
            ready.record(self._down)
        return Download(hosts, ready)


def link_to(device: torch.device) -> DeviceLink:
    """Return the way to a device."""
    return CudaLink(device) if device.type == "cuda" else HostLink()
