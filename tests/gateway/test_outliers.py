"""An instance that does far worse than the others of its pool is left out for a while, and never too many at once."""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoint import Endpoint, Health
from gateway.loads import Load
from gateway.routing.asked import Asked
from gateway.routing.candidates import usable
from gateway.routing.config import RoutingConfig
from gateway.routing.outliers import LOOK_SECONDS, Change, OutliersConfig, OutlierWatch
from gateway.routing.router import Router
from tests.gateway.backend import Backend
from tests.gateway.clients import Client, request
from tests.gateway.process import GatewayProcess

RULE = OutliersConfig(min_requests=4, first_out_s=10, max_out_s=40)


def watch_of(seconds: dict[str, float | None], rule: OutliersConfig = RULE, count: int = 4) -> OutlierWatch:
    """Return a watch that has seen `count` requests at each instance, None being a failure."""
    watch = OutlierWatch(rule)
    feed(watch, seconds, 0.0, count)
    return watch


def feed(watch: OutlierWatch, seconds: dict[str, float | None], now: float, count: int = 4) -> None:
    for name, taken in seconds.items():
        for _ in range(count):
            if taken is None:
                watch.failed(name, now)
            else:
                watch.answered(name, taken, now)


def names(changes: list[Change]) -> list[str]:
    return [change.name for change in changes]


@pytest.mark.parametrize(
    ("seconds", "pools", "out"),
    [
        ({"a": 0.1, "b": 0.1, "c": 0.1}, "xxx", []),
        ({"a": 0.1, "b": 0.2, "c": 2.0}, "xxx", ["c"]),
        ({"a": 0.1, "b": 0.2, "c": 0.55}, "xxx", []),  # four times the median, but no half second above it
        ({"a": 1.0, "b": 1.0, "c": 3.9}, "xxx", []),  # far above, but not four times
        ({"a": 0.1, "b": 2.0}, "xx", ["b"]),
        ({"a": 0.1, "b": 0.1, "c": 2.0}, "xxy", []),  # alone in its pool
        ({"a": 0.1, "b": 0.1, "c": None}, "xxx", ["c"]),
        ({"a": None, "b": None, "c": None}, "xxx", []),  # all fail alike
        ({"a": 0.1, "b": 0.1, "c": 2.0, "d": None}, "xxxx", ["d", "c"]),  # the worst first
        ({"a": 0.1, "b": 0.1, "c": 2.0, "d": None}, "xxyy", ["d"]),
    ],
)
def test_who_is_left_out(seconds: dict[str, float | None], pools: str, out: list[str]) -> None:
    changes = watch_of(seconds).judge(dict(zip(seconds, pools, strict=True)), 1.0)
    assert names(changes) == out
    assert all(change.reason for change in changes)


def test_too_few_requests_judge_nobody() -> None:
    assert watch_of({"a": 0.1, "b": 9.0}, count=3).judge({"a": "", "b": ""}, 1.0) == []


def test_what_is_older_than_the_window_counts_no_more() -> None:
    watch = watch_of({"a": 0.1, "b": 9.0})
    assert watch.judge({"a": "", "b": ""}, RULE.window_s + 1) == []


def test_the_time_out_doubles_to_a_ceiling_and_is_forgotten_after_a_good_time() -> None:
    watch, now, pools, times = OutlierWatch(RULE), 100.0, {"a": "", "b": ""}, []
    for _ in range(4):
        feed(watch, {"a": 0.1, "b": 9.0}, now)
        assert names(watch.judge(pools, now)) == ["b"]
        began = now
        while watch.reason("b"):
            now += LOOK_SECONDS
            watch.judge(pools, now)
        times.append(now - began)
        now += LOOK_SECONDS
    assert times == [10, 20, 40, 40]
    now += RULE.max_out_s + LOOK_SECONDS
    watch.judge(pools, now)
    feed(watch, {"a": 0.1, "b": 9.0}, now + 1)
    watch.judge(pools, now + 1)
    assert watch.judge(pools, now + 11) == [Change("b", "")]


def test_after_its_return_only_what_it_does_from_then_on_counts() -> None:
    watch, pools = watch_of({"a": 0.1, "b": 9.0}), {"a": "", "b": ""}
    watch.judge(pools, 1.0)
    feed(watch, {"a": 0.1}, 10.5)
    assert watch.judge(pools, 11.0) == [Change("b", "")]
    feed(watch, {"b": 0.1}, 11.5)
    assert watch.judge(pools, 12.0) == []


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.1, 0.2, 3.0, 30.0, None])), max_size=300),
    st.floats(0, 1),
    st.integers(1, 7),
)
def test_never_more_than_the_share_of_a_pool_is_out(
    events: list[tuple[int, float | None]], share: float, num_instances: int
) -> None:
    watch = OutlierWatch(OutliersConfig(min_requests=2, max_share=share))
    pools = {str(number): "xy"[number % 2] for number in range(num_instances)}
    for now, (number, seconds) in zip(itertools.count(0.0, 0.5), events, strict=False):
        feed(watch, {str(number): seconds}, now, 1)
        watch.judge(pools, now)
        for pool in "xy":
            members = [name for name, its_pool in pools.items() if its_pool == pool]
            assert sum(bool(watch.reason(name)) for name in members) <= len(members) * share


def test_an_outlier_is_passed_over_unless_nobody_else_is_usable_and_returns_slowly() -> None:
    router = Router(RoutingConfig(outliers=RULE), random.Random(0))
    endpoints = {name: Endpoint(name, health=Health.READY, slow_start=10.0) for name in "ab"}
    loads = {"a": Load(9), "b": Load(0)}
    for _ in range(4):
        router.answered("a", 0.1, 0.0)
        router.answered("b", 9.0, 0.0)
    router.judge(endpoints, 1.0)
    chosen = router.choose(Asked(), usable(endpoints.values(), loads, 1.0))
    assert chosen is endpoints["a"]
    endpoints["a"].engine_up = False
    assert router.choose(Asked(), usable(endpoints.values(), loads, 1.0)) is endpoints["b"]
    router.judge(endpoints, 11.0)
    assert (endpoints["b"].outlier, endpoints["b"].share(11.0)) == ("", 0.1)


def test_a_running_gateway_leaves_an_instance_out_that_fails_and_says_why(tmp_path: Path) -> None:
    backends = [Backend(name, metrics=False) for name in "abc"]
    file = tmp_path / "gateway.json"
    rule = {"min_requests": 2, "first_out_s": 60}
    file.write_text(json.dumps({"routing": {"policy": "round_robin", "outliers": rule}}))
    gateway = GatewayProcess(*(backend.flag for backend in backends), flags=("--config", str(file)))
    gateway.wait_usable(3)
    with Client(gateway.url) as client:
        stream = client.stream()
        stream.send(*(request(f"r{n}", error="INTERNAL: broken", only="a", fail_after=0) for n in range(18)))
        errors = [item.error_message for item in stream.rest() if item.error_message]
        assert errors == ["INTERNAL: broken"] * 6
        gateway.wait_until(lambda: gateway.metric("gateway_ejections_total") == 1)
        assert len(backends[0].requests) == 6
        stream = client.stream()
        stream.send(*(request(f"next{n}") for n in range(9)))
        assert len(stream.rest()) == 9
    assert len(backends[0].requests) == 6
    facts = {item["name"]: item["outlier"] for item in json.loads(gateway.get("/healthz")[1])["instances"]}
    assert facts.pop(backends[0].grpc_address) == "100% of its requests fail, of the others' 0%"
    assert set(facts.values()) == {None}
    gateway.stop()
    for backend in backends:
        backend.stop()
