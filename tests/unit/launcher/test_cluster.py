"""Real tritonservers on a stand-in model: started, asked, killed in every way, restarted, stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.launcher.client import LlmClient, Sampling, text_inputs
from scripts.launcher.cluster import Cluster
from scripts.launcher.errors import LaunchError
from scripts.launcher.heal import heal
from scripts.launcher.heartbeat import STILL_SECONDS
from scripts.launcher.instance import TritonInstance
from scripts.launcher.leftovers import tagged_processes, tagged_regions
from scripts.launcher.ports import is_free
from scripts.launcher.supervisor import Supervisor, supervised
from tests.polling import PAUSE_SECONDS

REPOSITORY = Path(__file__).parent / "repository"

pytestmark = pytest.mark.e2e


def answer(instance: TritonInstance) -> str:
    with LlmClient(instance.grpc_url) as client:
        return "".join(chunk.text for chunk in client.stream(text_inputs("hi", Sampling(max_tokens=2)), timeout=20))


def is_ready(instance: TritonInstance) -> bool:
    with LlmClient(instance.grpc_url) as client:
        return client.is_ready()


def stub_of(instance: TritonInstance) -> int:
    return next(pid for pid in tagged_processes(instance.tag) if pid != instance.pid)


def until(condition: Callable[[], object], between: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        between()
        time.sleep(PAUSE_SECONDS)
    return bool(condition())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(2, repository=REPOSITORY, with_gateway=False, log_dir=tmp_path, ready_timeout=60) as running:
        yield running


def test_instances_answer_and_leave_no_process_port_or_region(tmp_path: Path) -> None:
    with Cluster(2, repository=REPOSITORY, with_gateway=False, log_dir=tmp_path, ready_timeout=60) as cluster:
        assert [answer(instance) for instance in cluster.instances] == ["w1 w2 ", "w1 w2 "]
        assert len(tagged_processes(cluster.tag)) == 4
        assert len(tagged_regions(cluster.tag)) == 2
    assert (tagged_processes(cluster.tag), tagged_regions(cluster.tag)) == ([], [])
    ports = [instance.ports for instance in cluster.instances]
    assert all(is_free(port) for own in ports for port in (own.http, own.grpc, own.metrics))


def test_killed_instance_comes_back_at_its_address_while_the_other_serves(cluster: Cluster) -> None:
    said: list[str] = []
    victim, other = cluster.instances
    with supervised(cluster, said.append):
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait(5)
        assert answer(other) == "w1 w2 "
        assert until(lambda: is_ready(victim), lambda: None, 30)
    assert len(said) == 2
    assert answer(victim) == "w1 w2 "
    assert len(tagged_regions(victim.tag)) == 1


@pytest.mark.parametrize("can_be_healed", [True, False])
def test_instance_whose_stub_died_is_found_by_its_heartbeat_and_healed_or_restarted(
    cluster: Cluster, can_be_healed: bool
) -> None:
    said: list[str] = []
    supervisor = Supervisor(cluster, said.append, heal if can_be_healed else lambda _: "no such thing")
    victim = cluster.instances[0]
    assert until(lambda: is_beating(supervisor), supervisor.check, 10)
    before = victim.pid
    os.kill(stub_of(victim), signal.SIGKILL)
    killed = time.monotonic()
    num_reports = 2 if can_be_healed else 3
    assert until(lambda: len(said) == num_reports, supervisor.check, 30 + 3 * STILL_SECONDS), said
    assert "heartbeat of llm has stood still" in said[0]
    assert time.monotonic() - killed > STILL_SECONDS
    assert (victim.pid == before) == can_be_healed
    assert until(lambda: is_ready(victim), supervisor.check, 30)
    assert answer(victim) == "w1 w2 "


def is_beating(supervisor: Supervisor) -> bool:
    return all(one.pulse.has_answered for one in supervisor._watched)


def test_instance_that_cannot_start_is_an_error_that_shows_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "repository" / "llm"
    broken.mkdir(parents=True)
    (broken / "config.pbtxt").write_text("no such field: 1")
    cluster = Cluster(1, repository=broken.parent, with_gateway=False, log_dir=tmp_path, ready_timeout=60)
    with pytest.raises(LaunchError, match="instance 0 ended with exit code") as caught, cluster:
        pass
    assert "instance-0.log" in str(caught.value)
    assert [path.name for path in Path("/dev/shm").glob(f"{cluster.tag}*")] == []
