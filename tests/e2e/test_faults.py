"""Parts are killed under load: no stream hangs, others go on, and service returns by itself."""

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from scripts.launcher.cluster import Cluster
from scripts.launcher.instance import TritonInstance
from scripts.launcher.leftovers import tagged_processes
from tests.e2e.kserve import Answer, ask_all, connect, make_request, read_metrics
from tests.e2e.test_bad_input import ask_whatever
from tests.polling import PAUSE_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECOVERY_SECONDS = 120.0
NUM_STREAMS = 16


def find_process(instance: TritonInstance, word: str) -> int:
    """Return the pid of the instance's process whose command line holds `word`."""
    for pid in tagged_processes(instance.tag):
        if word in " ".join(psutil.Process(pid).cmdline()):
            return pid
    raise AssertionError(f"no process of {instance.tag} has {word!r} in its command line")


def kill_core(instance: TritonInstance) -> None:
    os.kill(find_process(instance, "engine.core_process"), signal.SIGKILL)


def kill_stub(instance: TritonInstance) -> None:
    os.kill(find_process(instance, "llm_engine"), signal.SIGKILL)


def kill_instance(instance: TritonInstance) -> None:
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)


def wait_for_load(cluster: Cluster) -> TritonInstance:
    """Return an instance that has streams, once one has."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for instance in cluster.instances:
            if read_metrics(instance.metrics_url)["llm_running_requests"]:
                return instance
        time.sleep(PAUSE_SECONDS)
    raise AssertionError("the load reached no instance")


def is_serving(cluster: Cluster) -> bool:
    """Whether both instances themselves complete a request, and the gateway knows it."""
    for instance in cluster.instances:
        with connect(instance.grpc_url) as stub:
            if ask_whatever(stub, make_request("The king", max_tokens=2, stream=True)).errors:
                return False
    with urllib.request.urlopen(f"http://{cluster.gateway.http_url}/healthz", timeout=10) as response:
        return all(instance["usable"] for instance in json.load(response)["instances"])


def wait_for_recovery(cluster: Cluster) -> None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not is_serving(cluster):
        assert time.monotonic() < deadline, "service did not return"
        time.sleep(PAUSE_SECONDS)


@pytest.mark.parametrize("kill", [kill_core, kill_stub, kill_instance])
def test_a_death_under_load_hangs_no_stream_and_heals(
    healing_cluster: Cluster, kill: Callable[[TritonInstance], None]
) -> None:
    url = healing_cluster.gateway.grpc_url
    answers: list[Answer] = []
    requests = [make_request("Once upon a time", max_tokens=300, ignore_eos=True) for _ in range(NUM_STREAMS)]
    load = threading.Thread(target=lambda: answers.extend(ask_all(url, requests)))
    load.start()
    kill(wait_for_load(healing_cluster))
    load.join(timeout=RECOVERY_SECONDS)
    assert not load.is_alive(), "a stream hangs"
    assert len(answers) == NUM_STREAMS
    for answer in answers:
        answer.check_order()
    whole = [answer for answer in answers if not answer.errors]
    assert whole, "the streams of the other instance must go on"
    assert len({answer.text for answer in whole}) == 1
    wait_for_recovery(healing_cluster)
    after = ask_all(url, [make_request("The king", max_tokens=4) for _ in range(8)])
    assert not [answer.errors for answer in after if answer.errors]
