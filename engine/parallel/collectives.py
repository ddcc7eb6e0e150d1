"""What ranks do together: sums, gathers and exchanges of tensors, on `torch.distributed`.

Knows process groups, NCCL's on GPUs and Gloo's on CPUs, where what every layer needs goes over a mesh instead. Does not
know layers or steps.

Invariants:
1. All ranks of a group call the same operations in the same order.
2. On a GPU an operation is in the order of the current stream, and `sum_all` and `gather`, whose shapes do not depend
   on values, may be recorded: what they read and write then stays where it is.
"""

import os
import socket
from contextlib import ExitStack
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed as dist
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
    distributed_c10d,
)

from engine.errors import EngineUnavailable
from engine.parallel.config import Place
from engine.parallel.executor import Invitation
from engine.parallel.mesh import Mesh, connect_mesh
from engine.parallel.mesh_sums import gather_over, largest_over, sum_over


class Collectives(Protocol):
    """The operations of one rank; the grid is that of `engine.parallel.config`."""

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values` by their sum over all ranks, and return them."""
        ...

    def sum_within(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values`, on the host, by their sum over the ranks of this rank's expert group, and return them."""
        ...

    def largest_all(self, values: torch.Tensor) -> torch.Tensor:
        """Replace each of `values`, on the host, by the largest that a rank has in its place, and return them."""
        ...

    def largest_within(self, values: torch.Tensor) -> torch.Tensor:
        """Do what `largest_all` does among the ranks of this rank's expert group."""
        ...

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        """Return every rank's values, of one shape, on rank 0, and None on others."""
        ...

    def exchange(self, rows: torch.Tensor, sends: list[int], takes: list[int]) -> torch.Tensor:
        """Send this rank's peer in group i the next `sends[i]` rows, and return `takes[i]` rows from each, in order.

        Peers are the ranks at the same place in the other groups, this one included.
        """
        ...

    def join(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Return the rows of all peers, in the groups' order; `counts` are their numbers, any of them may be 0."""
        ...

    def smallest(self, value: int) -> int:
        """Return the smallest of all ranks' values; waits for them."""
        ...


class DistributedCollectives:
    """The operations on `torch.distributed`'s default group; made on all ranks together."""

    def __init__(self, place: Place, device: torch.device, mesh: Mesh | None = None) -> None:
        """Make the groups of the grid, for tensors on `device`; on the host with a mesh of all ranks."""
        self.place = place
        self.device = device
        self._mesh = mesh
        tp, ep = place.config.tp, place.config.ep
        self._all = range(tp * ep)
        self._within = range(place.ep_rank * tp, (place.ep_rank + 1) * tp)
        self._peers = self._group([[group * tp + i for group in range(ep)] for i in range(tp)])

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self._mesh is not None:
            return sum_over(self._mesh, values, self._all)
        dist.all_reduce(values)
        return values

    def sum_within(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the expert group, in place."""
        return sum_over(self._host, values, self._within)

    def largest_all(self, values: torch.Tensor) -> torch.Tensor:
        """Find the largest values, in place."""
        return largest_over(self._host, values, self._all)

    def largest_within(self, values: torch.Tensor) -> torch.Tensor:
        """Find the largest values of the expert group, in place."""
        return largest_over(self._host, values, self._within)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        """Gather on rank 0."""
        if self._mesh is not None:
            return gather_over(self._mesh, values)
        parts = None
        if self.place.rank == 0:
            parts = [torch.empty_like(values) for _ in range(self.place.config.num_ranks)]
        dist.gather(values, parts, dst=0)
        return parts

    def exchange(self, rows: torch.Tensor, sends: list[int], takes: list[int]) -> torch.Tensor:
        """Exchange rows between groups."""
        taken = rows.new_empty(sum(takes), *rows.shape[1:])
        dist.all_to_all_single(taken, rows, takes, sends, group=self._peers)
        return taken

    def join(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Gather the groups' rows everywhere; the shorter parts travel padded."""
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self._peers)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def smallest(self, value: int) -> int:
        """Find the smallest value."""
        values = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values.item())

    def leave(self) -> None:
        """Take this process out of the group, whether or not the others still answer."""
        if self._mesh is not None:
            self._mesh.close()
        _leave_group()

    @property
    def _host(self) -> Mesh:
        assert self._mesh is not None, "not on GPUs"
        return self._mesh

    def _group(self, groups: list[list[int]]) -> dist.ProcessGroup:
        """Make all of these groups, as every rank must, and return this rank's."""
        made = [dist.new_group(ranks) for ranks in groups]
        mine = next(group for group, ranks in zip(made, groups, strict=True) if self.place.rank in ranks)
        assert isinstance(mine, dist.ProcessGroup)
        return mine


def open_store(host: str, num_ranks: int) -> TCPStore:
    """Open the store at which ranks meet, on a free port of rank 0."""
    return TCPStore(host, 0, num_ranks, is_master=True, wait_for_workers=False)


def connect_store(host: str, port: int, num_ranks: int) -> TCPStore:
    """Return rank 0's store, as another rank."""
    return TCPStore(host, port, num_ranks, is_master=False, wait_for_workers=False)


def join_ranks(
    place: Place, store: TCPStore, invitation: Invitation, device: torch.device, timeout_seconds: float
) -> DistributedCollectives:
    """Join the other ranks and return what they do together.

    Args:
        place: this rank.
        store: that of rank 0.
        invitation: where rank 0 is reached, whose way there the network device is taken of, and the group's key.
        device: what this rank computes on. A GPU's communicators are made now, not by the first operation.
        timeout_seconds: an operation that takes longer fails. On a GPU NCCL's watchdog then ends the process; what a
            graph replays it does not see: that is for rank 0's watch over its steps.

    Raises:
        EngineUnavailable: another rank did not come, or torch was built without NCCL.
    """
    is_gpu = device.type == "cuda"
    own, interface = way_to(invitation.host)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    with ExitStack() as undo:
        try:
            dist.init_process_group(
                "nccl" if is_gpu else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.config.num_ranks,
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if is_gpu else None,
            )
            undo.callback(_leave_group)
            mesh = None if is_gpu else connect_mesh(place, store, own, invitation.key, timeout_seconds)
            if mesh is not None:
                undo.callback(mesh.close)
            joined = DistributedCollectives(place, device, mesh)
        except (RuntimeError, ValueError) as error:
            raise EngineUnavailable(f"rank {place.rank} could not join the others: {error}") from error
        undo.pop_all()
        return joined


def way_to(host: str) -> tuple[str, str]:
    """Return the address that this machine has towards `host`, and the name of the network device that has it."""
    family, kind, _, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    import psutil

    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            return own, name
    raise EngineUnavailable(f"no network device has the address {own}, which leads to rank 0 at {host}")


def _leave_group() -> None:
    if dist.get_backend() == "nccl":  # to destroy a communicator all its ranks must come; to abort it, none
        distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
