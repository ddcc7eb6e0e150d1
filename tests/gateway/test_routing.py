"""Scorers, filters, policies and levels, by tables and with a clock of the test's."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ConfigError, make_config
from gateway.endpoint import Endpoint, Health, Signal
from gateway.loads import Load
from gateway.routing.asked import Asked, prefill_weight
from gateway.routing.candidates import Candidate, usable
from gateway.routing.config import RoutingConfig
from gateway.routing.filters import in_pool, split, untried, warmed_up, within_bound
from gateway.routing.levels import Level, LevelRule, LevelTracker
from gateway.routing.pick import pick
from gateway.routing.policy import PolicyName, make_policy
from gateway.routing.router import Router
from gateway.routing.scorers import kv_use, queue_depth, session, turn
from gateway.routing.scorers.prefix import MAX_PIECES, PIECE_BYTES, TTL_SECONDS, PrefixMarks, hash_pieces
from gateway.tensors import pack_texts
from tests.gateway.clients import Client, request
from tests.gateway.conftest import Start

ASKED = Asked()
RNG = random.Random(0)


def candidate(name: str = "a", now: float = 0.0, pool: str = "", group: str = "", **load: float) -> Candidate:
    endpoint = Endpoint(name, pool=pool, group=group, health=Health.READY)
    return Candidate(endpoint, Load(**load), now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("score", "facts", "expected"),
    [
        (queue_depth.score, {}, 1.0),
        (queue_depth.score, {"in_flight": 1}, 0.5),
        (queue_depth.score, {"in_flight": 1, "prefill": 2.0}, 0.25),
        (queue_depth.score, {"in_flight": 1, "others": 2.0, "reported_at": 0.0}, 0.25),
        (kv_use.score, {}, 0.5),
        (kv_use.score, {"kv_usage": 0.2}, 0.8),
        (kv_use.score, {"kv_usage": 1.5}, 0.0),
        (kv_use.score, {"kv_usage": 0.1, "reported_at": -4.0}, 0.6),
        (turn.score, {}, 1.0),
        (turn.score, {"last_picked": 3}, 0.25),
        (session.score, {}, 0.0),
    ],
)
def test_scores(score, facts: dict[str, Any], expected: float) -> None:
    assert score(ASKED, candidate(**facts)) == pytest.approx(expected)


@given(
    st.integers(0, 10**6),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(-1, 2),
    st.binary(max_size=9),
    st.floats(0, 1e6),
)
def test_every_score_is_between_0_and_1(
    in_flight: int, others: float, prefill: float, kv: float, name: bytes, now: float
) -> None:
    load = Load(in_flight, prefill, others=others, reported_at=0.0, kv_usage=kv, last_picked=in_flight)
    one = Candidate(Endpoint("a", slow_start=10.0, recovered_at=0.0), load, now)
    asked = Asked(session=name, prefix=hash_pieces(name * 100))
    marks = PrefixMarks()
    for score in (queue_depth.score, kv_use.score, turn.score, session.score, marks.score):
        assert 0.0 <= score(asked, one) <= 1.0


def test_a_recovered_instance_gets_its_share_little_by_little_and_a_new_one_at_once() -> None:
    endpoint = Endpoint("a", slow_start=10.0)
    endpoint.signal(Signal.PROBE_OK, 0.0)
    assert endpoint.share(0.0) == 1.0
    endpoint.signal(Signal.FAILED, 100.0)
    endpoint.signal(Signal.PROBE_OK, 200.0)
    assert [endpoint.share(now) for now in (200.0, 205.0, 210.0, 900.0)] == [0.1, 0.5, 1.0, 1.0]


def test_a_long_prompt_weighs_as_much_as_several_requests() -> None:
    assert prefill_weight(2048) == 1.0
    assert prefill_weight(20_480) == 10.0


def test_the_prefix_score_counts_pieces_from_the_beginning_and_forgets() -> None:
    marks = PrefixMarks()
    prompt = random.Random(1).randbytes(4 * PIECE_BYTES)
    marks.remember("a", hash_pieces(prompt), now=0.0)
    same, half = Asked(prefix=hash_pieces(prompt)), Asked(prefix=hash_pieces(prompt[: 2 * PIECE_BYTES] + b"x" * 512))
    other = Asked(prefix=hash_pieces(b"y" + prompt))
    assert [marks.score(asked, candidate()) for asked in (same, half, other)] == [1.0, 0.5, 0.0]
    assert marks.score(same, candidate("b")) == 0.0
    assert marks.score(same, candidate(now=TTL_SECONDS)) == 0.0
    again = candidate(now=9.0)
    again.endpoint.recovered_at = 5.0
    assert marks.score(same, again) == 0.0
    marks.remember("b", (1,), now=TTL_SECONDS)
    assert list(marks.marks) == [("b", 1)]
    assert len(hash_pieces(bytes(10**6))) == MAX_PIECES


def test_a_session_stays_and_moves_only_when_its_instance_is_gone() -> None:
    names = [f"i{number}" for number in range(5)]
    best = {}
    for number in range(200):
        asked = Asked(session=b"s%d" % number)
        ranked = sorted(names, key=lambda name: session.score(asked, candidate(name)))
        best[number] = ranked[-1]
        without = [name for name in names if name != "i0"]
        moved = max(without, key=lambda name: session.score(asked, candidate(name)))
        assert moved == ranked[-1] or ranked[-1] == "i0"
    assert min(Counter(best.values()).values()) > 20


def test_sessions_come_back_one_after_the_other_to_an_instance_that_has_recovered() -> None:
    back, other = candidate("a"), candidate("b")
    back.endpoint.recovered_at, back.endpoint.slow_start = 0.0, 10.0
    home: list[set[int]] = []
    for back.now in (0.0, 3.0, 6.0, 10.0):
        asked = [Asked(session=b"s%d" % number) for number in range(200)]
        home.append({n for n, each in enumerate(asked) if session.score(each, back) > session.score(each, other)})
    assert home[0] < home[1] < home[2] < home[3]
    assert len(home[0]) < 40
    assert len(home[3]) > 80


def test_filters() -> None:
    a, b = candidate("a", pool="tp", group="old", in_flight=9), candidate("b", pool="ep", group="new", in_flight=0)
    assert untried(Asked(tried={"a"}), [a, b], RNG) == [b]
    assert within_bound(ASKED, [a, b], RNG) == [b]
    assert in_pool("tp")(ASKED, [a, b], RNG) == [a]
    drawn = Counter(split({"old": 3.0, "new": 1.0})(ASKED, [a, b], RNG)[0].name for _ in range(1000))
    assert 680 < drawn["a"] < 820
    assert split({"gone": 1.0})(ASKED, [a, b], RNG) == [a, b]
    warm = candidate("c", now=5.0)
    warm.endpoint.recovered_at, warm.endpoint.slow_start = 4.0, 10.0
    kept = Counter(each.name for _ in range(1000) for each in warmed_up(ASKED, [a, warm], RNG))
    assert kept["a"] == 1000
    assert 60 < kept["c"] < 140


def split_router(**weights: float) -> tuple[Router, list[Candidate]]:
    routing = RoutingConfig(policy=PolicyName.SESSION, split=weights)
    return Router(routing, random.Random(0)), [candidate("a", group="old"), candidate("b", group="new")]


def test_a_session_stays_in_its_group_and_moves_only_to_one_that_grows() -> None:
    router, both = split_router(old=99, new=1)
    names = []
    for new in (1, 10, 50):
        router.apply(router.config.model_copy(update={"split": {"old": 100 - new, "new": new}}))
        chosen = [router.choose(Asked(session=b"s%d" % number), both) for number in range(1000)]
        names.append([endpoint.name for endpoint in chosen if endpoint is not None])
    shares = [Counter(each)["b"] for each in names]
    assert shares[0] < 25 < 70 < shares[1] < 130 < 450 < shares[2] < 550
    assert all(after == "b" for before, after in zip(names[0], names[1], strict=True) if before == "b")


def test_a_group_without_weight_gets_nothing_while_there_is_another_not_even_what_has_failed_there() -> None:
    router, both = split_router(old=1, new=0)
    assert router.choose(Asked(tried={"a"}), both) is both[0].endpoint
    assert router.choose(Asked(), both[1:]) is both[1].endpoint
    router, both = split_router(old=1, new=1)
    for number in range(20):
        assert router.choose(Asked(tried={"a"}, session=b"%d" % number), both) is both[1].endpoint


def test_another_configuration_leaves_turns_level_and_marks_as_they_are() -> None:
    levels = {"low_pool": "low", "high_pool": "high", "window_s": 0}
    router = Router(RoutingConfig.model_validate({"policy": "round_robin", "levels": levels}), random.Random(0))
    both = [candidate("a", pool="high"), candidate("b", pool="high")]
    router.observe(100, 0.0)

    def take(turns: int) -> Counter[str]:
        taken: Counter[str] = Counter()
        for _ in range(turns):
            chosen = router.choose(ASKED, both)
            assert chosen is not None
            router.placed(ASKED, chosen.name, next(c.load for c in both if c.name == chosen.name), 1.0)
            taken[chosen.name] += 1
        return taken

    take(100)
    router.apply(RoutingConfig.model_validate({"policy": "round_robin", "levels": levels | {"threshold": 50}}))
    assert take(10) == {"a": 5, "b": 5}
    assert router.status()["level"] == "high"
    assert router.levels is not None
    assert router.levels.rule.threshold == 50
    router.apply(RoutingConfig(policy=PolicyName.PREFIX))
    router.placed(Asked(prefix=(1,)), "a", Load(), 1.0)
    router.apply(RoutingConfig(policy=PolicyName.PREFIX, slow_start_s=1.0))
    assert router.policy.marks is not None
    assert router.policy.marks.marks
    assert router.levels is None


def choose(policy: PolicyName, asked: Asked, loads: dict[str, Load], rounds: int = 1) -> list[str]:
    endpoints = [Endpoint(name, health=Health.READY) for name in loads]
    made, rng, names = make_policy(policy), random.Random(1), []
    for turn_number in range(1, rounds + 1):
        found = pick(asked, usable(endpoints, loads, 0.0), rng, policy=made)
        assert found is not None
        loads[found.name].last_picked = turn_number
        names.append(found.name)
    return names


def test_each_policy_picks_what_it_is_named_after() -> None:
    loads = {"a": Load(5, kv_usage=0.1), "b": Load(1, kv_usage=0.9), "c": Load(3, kv_usage=0.5)}
    assert choose(PolicyName.QUEUE_DEPTH, ASKED, loads) == ["b"]
    assert choose(PolicyName.LEAST_KV, ASKED, loads) == ["a"]
    loads = {"a": Load(5), "b": Load(0), "c": Load(3)}
    assert sorted(choose(PolicyName.ROUND_ROBIN, ASKED, loads, 3)) == ["a", "b", "c"]
    two = Counter(choose(PolicyName.POWER_OF_TWO, ASKED, loads, 300))
    assert two["a"] == 0
    assert 150 < two["b"] < 250
    assert 50 < two["c"] < 150


def test_affinity_does_not_flood_an_instance() -> None:
    router = Router(RoutingConfig(policy=PolicyName.PREFIX), random.Random(0))
    endpoints = {name: Endpoint(name, health=Health.READY) for name in "abc"}
    loads = {name: Load() for name in "abc"}
    asked = Asked(prefix=hash_pieces(bytes(2000)))
    names = []
    for _ in range(30):
        found = router.choose(asked, usable(endpoints.values(), loads, 1.0))
        assert found is not None
        loads[found.name].in_flight += 1
        router.placed(asked, found.name, loads[found.name], 1.0)
        names.append(found.name)
    assert names[:8] == names[:1] * 8
    assert max(Counter(names).values()) <= 12
    for load in loads.values():
        load.in_flight = 0
    router.policy.marks.marks.clear()  # type: ignore[union-attr]
    router.placed(asked, "b", loads["b"], 2.0)
    found = router.choose(asked, usable(endpoints.values(), loads, 2.0))
    assert found is not None
    assert found.name == "b"


def prompted(name: str, tensor: str, prompt: bytes, typed: bool) -> Any:
    asked = request(name)
    added = asked.inputs.add(name=tensor, datatype="BYTES", shape=[1])
    if typed:
        added.contents.bytes_contents.append(prompt)
    else:
        asked.raw_input_contents.append(prompt if tensor == "input_ids" else pack_texts([prompt]))
    return asked


@pytest.mark.process
def test_prompts_of_any_length_that_begin_alike_go_to_one_instance(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("routing: {policy: prefix}")
    gateway, backends = start(3, "--config", str(config))
    kinds = [("text_input", False), ("text_input", True), ("messages", False), ("input_ids", False)]
    with Client(gateway.url) as client:
        stream = client.stream()
        for turn_number in range(4):
            for number in range(8):  # of three instances: who only takes turns gives them others each time
                tensor, typed = kinds[number % 4]
                stream.send(prompted(str(number), tensor, bytes([number]) * 1000 + bytes(4 * turn_number), typed))
                stream.read()
        stream.rest()
    homes = {(item.id, backend.name) for backend in backends for item in backend.requests}
    assert len(homes) == 8
    assert all(backend.requests for backend in backends)


def test_a_policy_with_no_instance_left_by_its_filters_uses_what_there_is() -> None:
    endpoints = {"a": Endpoint("a", pool="tp", health=Health.READY)}
    levels = {"low_pool": "gone", "high_pool": "tp"}
    router = Router(RoutingConfig.model_validate({"levels": levels}), random.Random(0))
    assert router.choose(Asked(tried={"a"}), usable(endpoints.values(), {"a": Load()}, 0.0)) is endpoints["a"]


RULE = LevelRule({Level.LOW: "tp", Level.HIGH: "replicas"})


def test_levels_follow_the_mean_with_hysteresis_and_say_why() -> None:
    levels = LevelTracker(RULE)
    for second in range(60):
        assert levels.observe(66, float(second)) is None  # within the band
    assert levels.pool == "tp"
    switch = next(s for second in range(60, 120) if (s := levels.observe(90, float(second))))
    assert (switch.level, switch.pool, levels.pool) == (Level.HIGH, "replicas", "replicas")
    assert "at least 70.4" in switch.reason
    assert switch.at > 60.0
    for second in range(120, 180):
        assert levels.observe(60, float(second)) is None
    switch = next(s for second in range(180, 240) if (s := levels.observe(10, float(second))))
    assert (switch.level, levels.num_switches) == (Level.LOW, 2)
    assert list(levels.switches)[-1] is switch


def test_a_short_burst_does_not_switch() -> None:
    levels = LevelTracker(RULE)
    levels.observe(0, 0.0)
    for tenth in range(1, 6):
        assert levels.observe(150, tenth / 10) is None


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 30)), max_size=60))
def test_levels_switch_only_outside_the_band(steps: list[tuple[int, float]]) -> None:
    levels, now = LevelTracker(RULE), 0.0
    for in_flight, elapsed in steps:
        now += elapsed
        before = levels.level
        switch = levels.observe(in_flight, now)
        assert (switch is not None) == (levels.level is not before)
        assert levels.level is Level.LOW or levels.mean >= 57.6
        assert levels.level is Level.HIGH or levels.mean < 70.4


@pytest.mark.parametrize(
    ("routing", "reason"),
    [
        ({"policy": "random"}, "routing.policy"),
        ({"split": {"canary": 1}}, "group 'canary'"),
        ({"split": {"": -1}}, "negative"),
        ({"split": {"": 0}}, "every weight"),
        ({"levels": {"low_pool": "tp", "high_pool": "dp"}}, "pools are"),
        ({"levels": {"low_pool": "", "high_pool": "", "hysteresis": 1}}, "hysteresis"),
        ({"levels": {"low_pool": "", "high_pool": ""}}, "both ''"),
        ({"split": {"": float("nan")}}, "finite number"),
        ({"slow_start_s": float("inf")}, "finite number"),
    ],
)
def test_a_routing_that_cannot_work_is_refused(routing: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config({"instances": [{"grpc": "h:1"}], "routing": routing})
