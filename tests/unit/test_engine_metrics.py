"""Counters never fall, histograms add up, and timings come from outputs."""

from collections.abc import Mapping

import pytest

from engine.metrics import COUNTERS, GAUGES, EngineMetrics
from engine.open_requests import REMEMBER_SECONDS, OpenRequests
from engine.output_timing import OutputTimer
from engine.outputs import EngineStats, FinishReason, RequestOutput, Timings


class Value:
    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        assert value > 0
        self.value += value


class Factory:
    """Keeps every metric by name and `le`."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str | None], Value] = {}

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Value:
        return self.made.setdefault((name, labels.get("le")), Value())

    counter = gauge

    def __getitem__(self, name: str) -> float:
        return self.made[name, None].value


def test_every_metric_exists_before_anything_is_observed():
    factory = Factory()
    EngineMetrics(factory)
    assert {name for name, le in factory.made if le is None} >= {*GAUGES, *COUNTERS}


def test_counters_go_on_growing_when_a_new_core_counts_from_zero():
    factory = Factory()
    metrics = EngineMetrics(factory)
    for generated in (10, 25, 0, 4):
        metrics.publish(EngineStats(num_generated_tokens=generated), is_up=True)
    assert factory["llm_generated_tokens_total"] == 29


def test_gauges_show_the_latest_reading():
    factory = Factory()
    metrics = EngineMetrics(factory)
    metrics.publish(EngineStats(num_waiting=4, kv_usage=0.5), is_up=True)
    metrics.publish(EngineStats(num_waiting=2), is_up=False)
    assert (factory["llm_waiting_requests"], factory["llm_kv_cache_usage"], factory["llm_engine_up"]) == (2, 0, 0)


def test_histogram_buckets_are_cumulative_and_sum_up():
    factory = Factory()
    metrics = EngineMetrics(factory)
    metrics.observe("llm_itl_seconds", 0.004, 3)
    metrics.observe("llm_itl_seconds", 99.0)
    metrics.observe("llm_itl_seconds", -1.0)
    metrics.publish(EngineStats(), is_up=True)
    metrics.publish(EngineStats(), is_up=True)
    buckets = {le: metric.value for (name, le), metric in factory.made.items() if name == "llm_itl_seconds_bucket"}
    assert (buckets["0.001"], buckets["0.005"], buckets["10"], buckets["+Inf"]) == (1, 4, 4, 5)
    assert factory["llm_itl_seconds_count"] == 5
    assert factory["llm_itl_seconds_sum"] == pytest.approx(99.012)


def test_times_to_first_token_between_tokens_and_to_the_end_are_observed_once_each():
    seen: list[tuple[str, float, int]] = []
    now = [10.0]
    timer = OutputTimer(lambda *args: seen.append(args), lambda: now[0])
    timer.see(RequestOutput(1, [5], timings=Timings(arrived=9.0, scheduled=9.5, first_token=9.75)))
    now[0] = 10.5
    timer.see(RequestOutput(1, [6, 7], timings=Timings(arrived=9.0, scheduled=9.5, first_token=9.75)))
    timer.see(
        RequestOutput(
            1,
            [],
            finish_reason=FinishReason.STOP,
            timings=Timings(arrived=9.0, scheduled=9.5, first_token=9.75, finished=11.0),
        )
    )
    assert seen == [
        ("llm_queue_seconds", 0.5, 1),
        ("llm_prefill_seconds", 0.25, 1),
        ("llm_ttft_seconds", 0.75, 1),
        ("llm_itl_seconds", 0.25, 2),
        ("llm_e2e_seconds", 2.0, 1),
        ("llm_decode_seconds", 1.25, 1),
    ]


def test_a_request_without_tokens_has_waited_too():
    seen: list[tuple[str, float, int]] = []
    times = Timings(arrived=9.0, scheduled=9.5, finished=11.0)
    embedded = RequestOutput(1, [], finish_reason=FinishReason.STOP, timings=times)
    OutputTimer(lambda *args: seen.append(args), lambda: 11.0).see(embedded)
    assert seen == [("llm_e2e_seconds", 2.0, 1), ("llm_queue_seconds", 0.5, 1)]


def test_a_request_that_fails_before_it_starts_observes_nothing():
    seen: list[tuple[str, float, int]] = []
    OutputTimer(lambda *args: seen.append(args), lambda: 1.0).see(RequestOutput(1, finish_reason=FinishReason.ERROR))
    assert seen == []


def test_a_key_names_its_open_requests_until_they_are_forgotten():
    requests = OpenRequests(lambda: 0.0)
    assert not requests.register("k", 1, is_unique=False)
    assert not requests.register("k", 2, is_unique=False)
    assert requests.abort("k") == [1, 2]
    requests.forget(1)
    requests.forget(99)
    assert requests.abort("k") == [2]


@pytest.mark.parametrize(
    ("key", "age", "is_unique", "expected"),
    [
        ("k", 0.0, True, True),
        ("k", REMEMBER_SECONDS, True, False),
        ("k", 0.0, False, False),
        ("other", 0.0, True, False),
        ("", 0.0, True, False),
    ],
)
def test_an_early_abort_is_remembered_for_a_while_for_unique_keys(
    key: str, age: float, is_unique: bool, expected: bool
):
    now = [100.0]
    requests = OpenRequests(lambda: now[0])
    assert requests.abort("k") == []
    now[0] += age
    assert requests.register(key, 1, is_unique=is_unique) is expected
