"""The blueprint in small: a pool of two ranks and one of two replicas, under load that passes the threshold twice."""

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from scripts.launcher.cluster import Cluster
from scripts.launcher.fleet import Fleet, read_fleet
from scripts.launcher.instance import TritonInstance
from scripts.launcher.leftovers import tagged_processes
from tests.e2e.kserve import Answer, ask, connect, make_request, read_metrics
from tests.e2e.test_faults import RECOVERY_SECONDS
from tests.polling import PAUSE_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
THRESHOLD = 4
NUM_CLIENTS = 10
MAX_TOKENS = 24
POOLS = f"""
pools:
- {{name: wide, tp: 2, threads: 1, options: {{kv_cache_gib: 0.25}}}}
- {{name: narrow, replicas: 2, threads: 1, options: {{kv_cache_gib: 0.25}}}}
routing:
  levels: {{low_pool: wide, high_pool: narrow, threshold: {THRESHOLD}, window_s: 0.5}}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    file = tmp_path_factory.mktemp("pools") / "pools.yaml"
    file.write_text(POOLS)
    return read_fleet(file)


@pytest.fixture(scope="module")
def cluster(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(fleet, log_dir=tmp_path_factory.mktemp("logs")) as running:
        yield running


class Load:
    """Clients that ask again as soon as they are answered, more or fewer of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[Answer] = []
        self._wanted = 0
        self._threads: list[threading.Thread] = []

    def set_clients(self, number: int) -> None:
        """Have so many from now on; who is too many ends with the current answer."""
        self._wanted = number
        for index in range(len(self._threads), number):
            self._threads.append(threading.Thread(target=self._work, args=(index,)))
            self._threads[-1].start()

    def end(self) -> None:
        """End all and wait for their answers."""
        self._wanted = 0
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a stream hangs"

    def check(self) -> None:
        """Assert that every answer is whole, and that all say the same."""
        for answer in self.answers:
            answer.check_order()
            assert not answer.errors
            assert answer.token_ids == self.answers[0].token_ids
        assert len(self.answers[0].token_ids) == MAX_TOKENS

    def _work(self, index: int) -> None:
        with connect(self.url) as stub:
            while index < self._wanted:
                self.ask(stub)

    def ask(self, stub: Any) -> None:
        """Ask once more."""
        request = make_request("Once upon a time", max_tokens=MAX_TOKENS, ignore_eos=True)
        self.answers.append(ask(stub, request))


def routing(cluster: Cluster) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{cluster.gateway.http_url}/healthz", timeout=10) as response:
        return json.load(response)["routing"]


def level_is(cluster: Cluster, level: str, pool: str) -> bool:
    return read_metrics(cluster.gateway.http_url)[f'gateway_level{{level="{level}",pool="{pool}"}}'] == 1


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll, since metrics tell nobody when they change."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come about"
        time.sleep(PAUSE_SECONDS)


def served(cluster: Cluster) -> dict[str, float]:
    """Return how many requests each pool's instances have ended, by the gateway's metrics."""
    pools = {instance.grpc_url: instance.pool for instance in cluster.instances}
    ended = {"wide": 0.0, "narrow": 0.0}
    for name, value in read_metrics(cluster.gateway.http_url).items():
        if name.startswith("gateway_requests_total{"):
            ended[next(pool for url, pool in pools.items() if f'instance="{url}"' in name)] += value
    return ended


def test_load_that_rises_and_falls_switches_pools_and_loses_no_request(cluster: Cluster) -> None:
    start = served(cluster)
    load = Load(cluster.gateway.grpc_url)
    try:
        load.set_clients(1)
        wait_until(lambda: served(cluster)["wide"] >= start["wide"] + 3)
        load.set_clients(NUM_CLIENTS)
        wait_until(lambda: level_is(cluster, "high", "narrow"))
        wait_until(lambda: served(cluster)["narrow"] >= start["narrow"] + NUM_CLIENTS)
        load.set_clients(1)
        wait_until(lambda: level_is(cluster, "low", "wide"))
    finally:
        load.end()
    load.check()
    up, down = routing(cluster)["switches"]
    assert (up["level"], up["pool"], down["level"], down["pool"]) == ("high", "narrow", "low", "wide")
    assert "requests in flight on average over 0.5 s, at least 4.4" in up["reason"]
    assert "below 3.6" in down["reason"]
    assert read_metrics(cluster.gateway.http_url)['gateway_level_switches_total{level="high"}'] == 1


def test_a_rank_that_is_killed_under_load_costs_time_and_no_request(cluster: Cluster) -> None:
    wide = next(instance for instance in cluster.instances if instance.pool == "wide")
    rank, start = find_rank(wide), served(cluster)["wide"]
    load = Load(cluster.gateway.grpc_url)
    try:
        load.set_clients(THRESHOLD - 1)
        wait_until(lambda: served(cluster)["wide"] > start)
        wait_until(lambda: read_metrics(wide.metrics_url)["llm_running_requests"] > 0)
        os.kill(rank, signal.SIGKILL)
        wait_until(lambda: not is_usable(cluster, wide))
    finally:
        load.end()
    wait_until(lambda: is_usable(cluster, wide))
    start = served(cluster)["wide"]
    with connect(load.url) as stub:
        load.ask(stub)
    assert served(cluster)["wide"] == start + 1
    load.check()
    assert find_rank(wide) != rank


def find_rank(instance: TritonInstance) -> int:
    """Return the pid of the instance's rank 1."""
    return next(pid for pid in tagged_processes(instance.tag) if psutil.Process(pid).name() == "rank 1")


def is_usable(cluster: Cluster, instance: TritonInstance) -> bool:
    """Whether the gateway thinks so."""
    with urllib.request.urlopen(f"http://{cluster.gateway.http_url}/healthz", timeout=10) as response:
        return next(each["usable"] for each in json.load(response)["instances"] if each["name"] == instance.grpc_url)
