"""Pools of instances: what a file of them may say, what each instance is told, what the machine must have for all."""

import json
from pathlib import Path

import pytest

from gateway.config import make_config
from scripts.launcher import checks
from scripts.launcher.cluster import Cluster, plan_instances
from scripts.launcher.errors import LaunchError
from scripts.launcher.fleet import THREADS_ENV, Fleet, read_fleet
from scripts.launcher.gateway import GatewayOptions, gateway_fields
from scripts.launcher.instance import InstanceOptions
from scripts.launcher.paths import DEFAULT_MODEL, ROOT
from scripts.launcher.tritonserver import TritonServer

SERVER = TritonServer(Path("/bin/true"), None)
TWO_POOLS = """
pools:
- {name: wide, tp: 2, threads: 1, options: {kv_cache_gib: 0.5, enable_prefix_caching: false}}
- {name: narrow, replicas: 2}
routing:
  policy: power_of_two
  levels: {low_pool: wide, high_pool: narrow, threshold: 4, window_s: 1}
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_ENV, raising=False)


def read(folder: Path, text: str) -> Fleet:
    file = folder / "pools.yaml"
    file.write_text(text)
    return read_fleet(file)


def test_each_instance_is_told_its_pools_settings_and_keeps_its_pool(tmp_path: Path) -> None:
    fleet = read(tmp_path, TWO_POOLS)
    options = InstanceOptions(SERVER, tmp_path, {"SCALELLM_MODEL": "m"}, tmp_path, "scalellm-1-ab-")
    wide, *narrow = plan_instances(fleet, options)
    assert {
        "SCALELLM_TENSOR_PARALLEL": "2",
        "SCALELLM_EXPERT_PARALLEL": "1",
        "SCALELLM_KV_CACHE_GIB": "0.5",
        "SCALELLM_ENABLE_PREFIX_CACHING": "False",
        "SCALELLM_NUM_THREADS": "1",
        "SCALELLM_MODEL": "m",
    }.items() <= wide.env.items()
    assert [each.pool for each in (wide, *narrow)] == ["wide", "narrow", "narrow"]
    assert "SCALELLM_TENSOR_PARALLEL" not in narrow[0].env
    assert wide.name == "instance 0 (wide)"


def test_the_docs_example_is_a_fleet_that_the_demo_model_can_be() -> None:
    fleet = read_fleet(ROOT / "docs" / "pools.yaml")
    assert [pool.num_ranks for pool in fleet.pools] == [2, 1]
    assert all(checks.check_engine(DEFAULT_MODEL, pool) for pool in fleet.pools)


def test_the_gateway_gets_pools_and_levels_it_accepts(tmp_path: Path) -> None:
    fleet = read(tmp_path, TWO_POOLS)
    cluster = Cluster(fleet, server=SERVER, log_dir=tmp_path)
    fields = gateway_fields(GatewayOptions("127.0.0.1", 9001, 9002), cluster.instances, fleet.routing)
    config = make_config(json.loads(json.dumps(fields)))
    assert [instance.pool for instance in config.instances] == ["wide", "narrow", "narrow"]
    assert config.routing == fleet.routing


def test_pools_of_levels_share_the_cores_each_by_itself_and_others_together(tmp_path: Path) -> None:
    fleet = read(tmp_path, TWO_POOLS)
    wide, narrow = fleet.pools
    assert fleet.variables(narrow, num_cores=8)[THREADS_ENV] == "4"
    together = fleet.model_copy(update={"routing": Fleet.of(1).routing})
    assert together.variables(narrow, num_cores=8)[THREADS_ENV] == "2"
    assert together.variables(narrow, num_cores=1)[THREADS_ENV] == "1"
    assert together.variables(wide, num_cores=8)[THREADS_ENV] == "1"


def test_the_environments_threads_hold_where_the_pool_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(THREADS_ENV, "3")
    fleet = read(tmp_path, TWO_POOLS)
    assert [fleet.variables(pool, 8)[THREADS_ENV] for pool in fleet.pools] == ["1", "3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools: []", "pools: "),
        ("- x", "not a mapping"),
        ("pools: [{name: a}, {name: a}]", "two pools have the same name"),
        ("pools: [{name: a, replicas: 0}]", "pools.0.replicas"),
        ("pools: [{name: a, colour: red}]", "pools.0.colour"),
        ("pools: [{name: a, options: {speed: 9}}]", "no option 'speed'"),
        ("pools: [{name: a, options: {tensor_parallel: 2}}]", "tensor_parallel is given as tp"),
        ("pools: [{name: a}]\nrouting: {levels: {low_pool: a, high_pool: b}}", "levels name 'a' and 'b'"),
        ("pools: [{name: a}]\nrouting: {policy: best}", "routing.policy"),
        ("pools: [", "pools.yaml"),
    ],
)
def test_a_file_that_is_not_right_is_refused_as_a_whole_with_the_field(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(LaunchError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert "Cure: " in str(caught.value)


def test_settings_that_the_engine_refuses_are_refused_with_the_pool(tmp_path: Path) -> None:
    fleet = read(tmp_path, "pools: [{name: a, options: {block_size: 0}}, {name: b, tp: 64}, {name: c, ep: 2}]")
    for pool, says in zip(fleet.pools, ("block_size", "query heads", "no experts"), strict=True):
        with pytest.raises(LaunchError, match=f"pool '{pool.name}' cannot be: .*{says}"):
            checks.check_engine(DEFAULT_MODEL, pool)


def test_memory_is_asked_for_all_pools_together(tmp_path: Path) -> None:
    fleet = read(tmp_path, "pools: [{name: a, tp: 2, options: {kv_cache_gib: 4000}}, {name: b, replicas: 3}]")
    with pytest.raises(LaunchError, match=r"4 instances need about 80\d\d\.\d GiB .*'a': 1 x .* 2 x .*'b': 3 x"):
        checks.check_memory(DEFAULT_MODEL, fleet)


def test_threads_that_outnumber_the_cores_are_refused_where_pools_compute_together(tmp_path: Path) -> None:
    text = "pools: [{name: a, threads: 2}, {name: b, replicas: 2, threads: 1}]\n"
    with pytest.raises(LaunchError, match="pool 'a' and pool 'b' would compute with 4 threads on 2 cores"):
        checks.check_threads(read(tmp_path, text), num_cores=2)
    levels = "routing: {levels: {low_pool: a, high_pool: b}}"
    checks.check_threads(read(tmp_path, text + levels), num_cores=2)
    with pytest.raises(LaunchError, match="pool 'a' would compute with 2 threads on 1 cores"):
        checks.check_threads(read(tmp_path, text + levels), num_cores=1)
    checks.check_threads(Fleet.of(100), num_cores=1)


def test_each_replica_of_external_ranks_needs_an_address_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EXECUTOR": "external", "ADDRESS": "127.0.0.1:9", "KEY": "ab" * 32}.items():
        monkeypatch.setenv(f"SCALELLM_RANK_{name}", value)
    two = "pools:\n- {name: a, tp: 2}\n- {name: b, tp: 2, options: {rank_address: '127.0.0.1:%d'}}\n"
    for fine in (Fleet.of(1, tp=2), Fleet.of(2), read(tmp_path, two % 10)):
        checks.check_rank_addresses(DEFAULT_MODEL, fine)
    for shared in (Fleet.of(2, tp=2), read(tmp_path, two % 9)):
        with pytest.raises(LaunchError, match=r"one address, 127\.0\.0\.1:9"):
            checks.check_rank_addresses(DEFAULT_MODEL, shared)
