"""A connection between each two ranks, and bytes that go both ways at once.

Knows sockets. Does not know tensors, or what is said.

The thread that computes sends and awaits by itself, and looks for `SPIN_SECONDS` before it sleeps, since ranks that
share a layer come to its end almost together. Gloo wakes three threads on either side for each operation.

Invariants:
1. All ranks call `swap` in the same order, and what one sends another takes: bytes carry no names.
2. A peer that has gone, or is silent for the timeout, is an error and not a wait for ever.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from engine.errors import EngineUnavailable, RanksFailed
from engine.parallel.config import Place
from engine.parallel.links import LinkServer, connect_to

SPIN_SECONDS = 100e-6
CHUNK_BYTES = 1 << 16  # at a time, so that what is sent is taken while a cache still holds it
ACCEPT_SECONDS = 0.2


class Store(Protocol):
    """Where ranks leave each other word before they are connected."""

    def set(self, key: str, value: str, /) -> None:
        """Leave it."""
        ...

    def get(self, key: str, /) -> bytes:
        """Wait for it."""
        ...


class Mesh:
    """One rank's connections.

    Attributes:
        rank: this one.
        others: the other ranks.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket], timeout_seconds: float) -> None:
        """Take over connected sockets, by the rank at their other end."""
        self.rank = rank
        self.others = sorted(peers)
        self._peers = dict(peers)
        self._timeout = timeout_seconds
        for peer in self._peers.values():
            peer.setblocking(False)

    def swap(self, sends: Mapping[int, memoryview], takes: Mapping[int, memoryview]) -> None:
        """Send each of `sends` to its rank and fill each of `takes` from its rank, all at once.

        Raises:
            RanksFailed: a rank has gone, or none has moved for the timeout.
        """
        unsent = {rank: data for rank, data in sends.items() if len(data)}
        untaken = {rank: data for rank, data in takes.items() if len(data)}
        idle_since = 0.0
        while unsent or untaken:
            if self._move(unsent, socket.socket.send) | self._move(untaken, socket.socket.recv_into):
                idle_since = 0.0
                continue
            idle_since = idle_since or time.monotonic()
            if time.monotonic() - idle_since < SPIN_SECONDS:
                os.sched_yield()
            else:
                self._sleep(unsent, untaken)

    def close(self) -> None:
        """End the connections."""
        for peer in self._peers.values():
            peer.close()

    def _move(self, pending: dict[int, memoryview], move: Callable[[socket.socket, memoryview], int]) -> bool:
        """Move a chunk to or from each rank, drop what is complete, and return whether anything has moved."""
        has_moved = False
        for rank, data in list(pending.items()):
            try:
                count = move(self._peers[rank], data[:CHUNK_BYTES])
            except BlockingIOError:
                continue
            except OSError as error:
                raise RanksFailed(f"rank {rank} is gone: {error}") from None
            if not count:
                raise RanksFailed(f"rank {rank} is gone: its connection has ended")
            has_moved = True
            pending[rank] = data[count:]
            if count == len(data):
                del pending[rank]
        return has_moved

    def _sleep(self, unsent: Mapping[int, memoryview], untaken: Mapping[int, memoryview]) -> None:
        poll = select.poll()
        for rank in unsent.keys() | untaken.keys():
            wanted = (select.POLLOUT if rank in unsent else 0) | (select.POLLIN if rank in untaken else 0)
            poll.register(self._peers[rank], wanted)
        if not poll.poll(1000 * self._timeout):
            ranks = sorted(unsent.keys() | untaken.keys())
            raise RanksFailed(f"ranks {ranks} have been silent for {self._timeout:g} s")


def connect_mesh(place: Place, store: Store, host: str, key: bytes, timeout_seconds: float) -> Mesh:
    """Connect this rank with all others, which do the same.

    Args:
        place: this rank.
        store: that of the group.
        host: this rank's address for the others.
        key: the group's; see `engine.parallel.links`.
        timeout_seconds: for connecting, and for each wait later.

    Raises:
        EngineUnavailable: a rank did not come.
    """
    rank, others = place.rank, set(range(place.config.num_ranks)) - {place.rank}
    peers: dict[int, socket.socket] = {}
    server = LinkServer(host, 0, key)
    try:
        store.set(f"mesh/{rank}", f"{host} {server.port}")
        for peer in range(rank):
            where, port = store.get(f"mesh/{peer}").decode().split()
            peers[peer] = connect_to(where, int(port), key, rank, timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        while missing := others - peers.keys():
            joined = server.accept_socket(ACCEPT_SECONDS)
            if joined is not None:
                peers[joined[0]] = joined[1]
            elif time.monotonic() > deadline:
                raise EngineUnavailable(f"ranks {sorted(missing)} have not reached rank {rank}")
    except BaseException:
        for peer in peers.values():
            peer.close()
        raise
    finally:
        server.close()
    return Mesh(rank, peers, timeout_seconds)
