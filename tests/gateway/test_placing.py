"""Health, load and routing, each on its own with a clock of the test's."""

import random

import pytest

from gateway.endpoint import FIRST_BACKOFF, MAX_BACKOFF, TRANSITIONS, UNAVAILABLE_LIMIT, Endpoint, Health, Signal
from gateway.loads import Load, Report
from gateway.routing.asked import Asked
from gateway.routing.candidates import usable
from gateway.routing.pick import pick
from gateway.scraper import parse_report


def ready(name: str) -> Endpoint:
    return Endpoint(name, health=Health.READY)


def choose(
    endpoints: list[Endpoint], loads: dict[str, Load], now: float = 0.0, tried: set[str] | None = None
) -> str | None:
    found = pick(Asked(tried or set()), usable(endpoints, loads, now), random.Random(0))
    return found and found.name


def test_the_least_loaded_usable_instance_is_picked() -> None:
    endpoints = [ready("a"), ready("b"), ready("c"), Endpoint("d")]
    loads = {"a": Load(5), "b": Load(2), "c": Load(3), "d": Load(0)}
    assert choose(endpoints, loads) == "b"
    endpoints[1].engine_up = False
    assert choose(endpoints, loads) == "c"


def test_nothing_usable_is_none() -> None:
    assert choose([Endpoint("a")], {"a": Load()}) is None


def test_ties_rotate() -> None:
    endpoints, loads = [ready("a"), ready("b"), ready("c")], {name: Load() for name in "abc"}
    order = []
    for turn in range(1, 10):
        name = choose(endpoints, loads)
        assert name is not None
        loads[name].last_picked = turn
        order.append(name)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert order == 3 * order[:3]


def test_an_instance_that_has_failed_a_request_comes_last_but_is_not_excluded() -> None:
    endpoints, loads = [ready("a"), ready("b")], {"a": Load(0), "b": Load(100)}
    assert choose(endpoints, loads, tried={"a"}) == "b"
    assert choose(endpoints[:1], loads, tried={"a"}) == "a"


def test_a_report_does_not_count_what_this_gateway_has_sent() -> None:
    load = Load(in_flight=4)
    load.report(Report(waiting=3, running=4), now=10.0)
    assert load.total(10.5) == 4 + 3
    load.in_flight = 0
    load.report(Report(waiting=0, running=4), now=10.1)  # the engine's own figure lags behind
    assert load.total(10.2) == 0


def test_a_report_older_than_a_second_counts_for_less() -> None:
    load = Load(in_flight=1)
    load.report(Report(running=9), now=0.0)
    assert [load.total(age) for age in (0.0, 1.0, 2.0, 8.0)] == [9.0, 9.0, 5.0, 2.0]


@pytest.mark.parametrize("health", Health)
@pytest.mark.parametrize("signal", Signal)
def test_health_changes_only_where_the_table_says(health: Health, signal: Signal) -> None:
    endpoint = Endpoint("a", health=health)
    assert endpoint.signal(signal, 1.0) == ((health, signal) in TRANSITIONS)
    assert endpoint.health is TRANSITIONS.get((health, signal), health)


@pytest.mark.parametrize("health", Health)
def test_every_state_leads_back_to_ready(health: Health) -> None:
    reached, todo = {health}, [health]
    while todo:
        here = todo.pop()
        new = {after for (before, _), after in TRANSITIONS.items() if before is here} - reached
        reached |= new
        todo += new
    assert Health.READY in reached


def test_the_back_off_doubles_up_to_a_ceiling_and_is_forgiven() -> None:
    endpoint, now, waits = ready("a"), 0.0, []
    for _ in range(9):
        endpoint.signal(Signal.FAILED, now)
        assert not endpoint.wants_probe(now)
        waits.append(endpoint.probe_at - now)
        now = endpoint.probe_at
        assert endpoint.wants_probe(now)
    assert waits[:3] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF]
    assert max(waits) == MAX_BACKOFF
    endpoint.signal(Signal.PROBE_OK, now)
    endpoint.signal(Signal.FAILED, now + 1000)
    assert endpoint.probe_at == now + 1000 + FIRST_BACKOFF


def test_a_death_that_fails_many_requests_counts_once() -> None:
    endpoint = ready("a")
    for _ in range(50):
        endpoint.unavailable(0.0)
        endpoint.signal(Signal.FAILED, 0.01)
    assert endpoint.probe_at == pytest.approx(0.01 + FIRST_BACKOFF)


def test_some_unavailable_answers_in_a_row_eject_and_an_answer_between_starts_over() -> None:
    endpoint = ready("a")
    for _ in range(UNAVAILABLE_LIMIT - 1):
        assert not endpoint.unavailable(0.0)
    endpoint.answered()
    for _ in range(UNAVAILABLE_LIMIT - 1):
        assert not endpoint.unavailable(0.0)
    assert endpoint.unavailable(0.0)
    assert endpoint.health is Health.SUSPECT


def beats(**values: float) -> dict[str, float]:
    return dict(values)


def test_one_heartbeat_that_stands_still_is_death_and_its_moving_leads_to_a_probe() -> None:
    endpoint, changed = ready("a"), False
    for tenth in range(32):
        endpoint.report_beats(beats(pre=tenth, engine=1, post=tenth), tenth / 10)
        changed = endpoint.check_beats(tenth / 10)
    assert changed
    assert endpoint.health is Health.DEAD
    assert not endpoint.wants_probe(100.0)
    endpoint.report_beats(beats(pre=40, engine=2, post=40), 3.2)
    assert endpoint.check_beats(3.2)
    assert endpoint.health is Health.SUSPECT
    assert endpoint.wants_probe(3.2)


def test_reports_that_stay_away_are_death_too_but_an_instance_without_heartbeats_is_not_judged() -> None:
    silent, without = ready("a"), ready("b")
    silent.report_beats(beats(engine=1), 0.0)
    assert not silent.check_beats(3.0)
    assert silent.check_beats(3.1)
    assert not without.check_beats(1000.0)


def test_a_draining_instance_keeps_its_state_but_its_stopped_heartbeat_is_seen() -> None:
    endpoint = Endpoint("a", health=Health.DRAINING)
    endpoint.report_beats(beats(engine=1), 0.0)
    assert not endpoint.check_beats(4.0)
    assert endpoint.health is Health.DRAINING
    assert endpoint.standstill(4.0)


@pytest.mark.parametrize(
    ("step_seconds", "last_step", "dead_at"),
    [(0.1, 10, 21), (0.1, 13, 19), (4.0, 13, 22)],
    ids=["before its first step", "after one", "where steps are long"],
)
def test_an_engine_that_has_work_and_makes_no_step_is_dead_until_it_makes_one(
    step_seconds: float, last_step: int, dead_at: int
) -> None:
    endpoint = Endpoint("a", health=Health.READY, stall_timeout=5.0)
    for second in range(30):
        endpoint.report_beats(beats(engine=second), second)
        endpoint.report_work((float(min(second, last_step)), step_seconds), is_busy=second > 10, now=second)
        assert endpoint.check_beats(second) == (second == dead_at)
    assert endpoint.health is Health.DEAD
    assert "no step for over" in endpoint.standstill(30.0)
    endpoint.report_work((99.0, step_seconds), is_busy=True, now=31.0)
    assert endpoint.check_beats(30.0)
    assert endpoint.health is Health.SUSPECT


def test_a_model_that_never_beats_while_others_do_is_death() -> None:
    endpoint = Endpoint("a", health=Health.READY, expected_beats=frozenset({"pre", "engine"}))
    for tenth in range(32):
        endpoint.report_beats(beats(pre=tenth), tenth / 10)
        endpoint.check_beats(tenth / 10)
    assert endpoint.health is Health.DEAD
    endpoint.report_beats(beats(pre=99, engine=0), 4.0)
    assert endpoint.check_beats(4.0)


def test_time_in_which_the_gateway_stood_still_is_forgiven() -> None:
    endpoint = ready("a")
    endpoint.report_beats(beats(engine=1), 0.0)
    endpoint.forgive(10.0)
    assert not endpoint.check_beats(12.0)


def test_a_report_is_read_from_prometheus_text() -> None:
    text = (
        "# HELP llm_waiting_requests waiting\nnv_gpu_power_usage 7\nllm_waiting_requests 3\nllm_running_requests{} 4\n"
        'llm_kv_cache_usage{model="llm_engine",version="1"} 0.5\nllm_engine_up 1\nllm_step_seconds nonsense\n'
        'llm_heartbeat{model="preprocessing"} 17\nllm_heartbeat{model="llm_engine"} 18\nllm_running_requests oops\n'
    )
    report = parse_report(text)
    assert (report.waiting, report.running, report.kv_usage, report.engine_up) == (3.0, 4.0, 0.5, True)
    assert report.beats == {"preprocessing": 17.0, "llm_engine": 18.0}
    assert parse_report("").engine_up is None
