"""What ranks tell each other directly: sums and gathers of any size, and a peer that is gone or silent."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch

from engine.errors import EngineUnavailable, RanksFailed
from engine.parallel.config import ParallelConfig, Place
from engine.parallel.mesh import Mesh, connect_mesh
from engine.parallel.mesh_sums import ONE_SHOT_BYTES, gather_over, largest_over, sum_over

KEY = bytes(32)
TIMEOUT = 60.0
MANY = ONE_SHOT_BYTES // 4 + 3  # numbers that are not sent whole, and do not divide evenly
HUGE = 3_000_001  # more than sockets hold: who only sends before it takes would wait for ever


@contextmanager
def meshes(num_ranks: int, timeout: float = TIMEOUT) -> Iterator[list[Mesh]]:
    """Connect so many ranks of this process."""
    peers: list[dict[int, socket.socket]] = [{} for _ in range(num_ranks)]
    for low, high in combinations(range(num_ranks), 2):
        peers[low][high], peers[high][low] = socket.socketpair()
    made = [Mesh(rank, each, timeout) for rank, each in enumerate(peers)]
    yield made
    for mesh in made:
        mesh.close()


def on_all(ranks: list[Any], call: Callable[[Any], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(call, ranks))


@pytest.mark.parametrize(("num_ranks", "size"), [(2, 1), (2, HUGE), (3, 5), (3, MANY), (4, MANY), (5, MANY)])
def test_all_ranks_get_the_same_sum_to_the_last_bit(num_ranks: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, 1, generator=generator) for _ in range(num_ranks)]
    expected = torch.stack(values).double().sum(dim=0)
    with meshes(num_ranks) as made:
        sums = on_all(made, lambda mesh: sum_over(mesh, values[mesh.rank], range(num_ranks)))
    assert all(ours is each for ours, each in zip(sums, values, strict=True))
    torch.testing.assert_close(sums[0].double(), expected, rtol=1e-6, atol=1e-5)
    assert all(torch.equal(each, sums[0]) for each in sums)


def test_rank_0_alone_gathers() -> None:
    values = torch.arange(12.0).view(3, 2, 2)
    with meshes(3) as made:
        first, *others = on_all(made, lambda mesh: gather_over(mesh, values[mesh.rank].clone()))
    assert torch.equal(torch.stack(first), values)
    assert others == [None, None]


def test_nothing_at_all_adds_up_to_nothing() -> None:
    with meshes(2) as made:
        sums = on_all(made, lambda mesh: sum_over(mesh, torch.empty(0, 4), range(2)))
        assert [each.shape for each in sums] == [(0, 4)] * 2


def test_the_largest_values_of_some_ranks_are_found_among_these() -> None:
    values = [torch.tensor([1.0, 5.0]), torch.tensor([2.0, float("nan")]), torch.tensor([9.0, 9.0])]
    with meshes(3) as made:
        first, second = on_all(made[:2], lambda mesh: largest_over(mesh, values[mesh.rank], (0, 1)))
    assert str(first.tolist()) == str(second.tolist()) == "[2.0, nan]"


def test_a_peer_that_has_gone_is_named() -> None:
    with meshes(3) as made:
        made[2].close()
        with pytest.raises(RanksFailed, match="rank 2 is gone"):
            sum_over(made[0], torch.ones(4), range(3))


def test_a_peer_that_says_nothing_is_named_after_the_timeout() -> None:
    with meshes(2, timeout=0.01) as made, pytest.raises(RanksFailed, match=r"ranks \[1\] have been silent for 0.01 s"):
        sum_over(made[0], torch.ones(4), range(2))


class Store:
    """Word that is awaited until it is left."""

    def __init__(self) -> None:
        self.words: dict[str, Future[bytes]] = {}

    def set(self, key: str, value: str, /) -> None:
        self.words.setdefault(key, Future()).set_result(value.encode())

    def get(self, key: str, /) -> bytes:
        return self.words.setdefault(key, Future()).result(TIMEOUT)


def test_ranks_that_know_the_key_find_each_other() -> None:
    store, config = Store(), ParallelConfig(tp=3)
    places = [Place(config, rank) for rank in range(3)]
    made = on_all(places, lambda place: connect_mesh(place, store, "127.0.0.1", KEY, TIMEOUT))
    assert torch.equal(
        on_all(made, lambda mesh: sum_over(mesh, torch.tensor([2.0**mesh.rank]), range(3)))[1], torch.tensor([7.0])
    )
    for mesh in made:
        mesh.close()


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(EngineUnavailable, match=r"ranks \[1\] have not reached rank 0"):
        connect_mesh(Place(ParallelConfig(tp=2), 0), Store(), "127.0.0.1", KEY, 0.01)
