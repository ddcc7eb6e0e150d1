"""Which metrics the engine model exports, and their values between two readings of the engine.

Knows names, help texts and buckets. Does not know Triton: a factory makes the metrics, so that tests can look at them.

Invariants:
1. Observing costs no call of a metric: values are counted here and handed over by `publish`, a few times a second.
   (Triton's own histogram costs one inter-process call for each observed value, so histograms are exported as their
   counters: `_bucket` with `le`, `_sum`, `_count`.)
2. Exported counters never fall, also when a new engine core counts from zero again.
"""

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine.outputs import EngineStats

GAUGES = {
    "llm_waiting_requests": "Requests that wait for a place in the batch",
    "llm_waiting_tokens": "Tokens of the requests that wait",
    "llm_running_requests": "Requests in the running batch",
    "llm_kv_cache_usage": "Used part of the KV cache, 0 to 1",
    "llm_kv_block_size": "Tokens in one KV-cache block",
    "llm_kv_num_blocks": "KV-cache blocks",
    "llm_engine_up": "1 while the engine core takes requests",
    "llm_pending_requests": "Requests whose adapter is being loaded",
    "llm_loaded_adapters": "Adapters that can be used at once",
    "llm_adapter_bytes": "Memory of adapters in bytes",
    "llm_step_seconds": "Duration of the latest engine step in seconds",
}
COUNTERS = {
    "llm_generated_tokens_total": "Generated tokens",
    "llm_prompt_tokens_total": "Prompt tokens taken in",
    "llm_cached_tokens_total": "Prompt tokens found in the prefix cache",
    "llm_preemptions_total": "Sequences that gave their blocks back",
    "llm_finished_requests_total": "Requests that have ended",
    "llm_expired_requests_total": "Requests that their deadline has ended",
    "llm_adapter_loads_total": "Adapters that have been read into memory",
    "llm_draft_tokens_total": "Draft tokens that were computed",
    "llm_accepted_draft_tokens_total": "Draft tokens that became output",
}
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SHORT = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
HISTOGRAMS = {
    "llm_queue_seconds": ("Time from arrival to the first step in seconds", SLOW),
    "llm_prefill_seconds": ("Time from the first step to the first token in seconds", FAST),
    "llm_ttft_seconds": ("Time to first token in seconds", FAST),
    "llm_itl_seconds": ("Time between two tokens of a request in seconds", FAST),
    "llm_decode_seconds": ("Time from the first token to the last one in seconds", SLOW),
    "llm_e2e_seconds": ("Time from arrival to the last token in seconds", SLOW),
    "llm_detokenize_seconds": ("Time spent to find where a sequence's text may be cut in seconds", SHORT),
}


class Gauge(Protocol):
    """A value that can be set."""

    def set(self, value: float) -> None:
        """Replace the value."""
        ...


class Counter(Protocol):
    """A value that only grows."""

    def increment(self, value: float) -> None:
        """Add to the value."""
        ...


class MetricFactory(Protocol):
    """Makes the metrics that are really exported."""

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Gauge:
        """Make one gauge."""
        ...

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> Counter:
        """Make one counter; calls with one name and several labels share a family."""
        ...


@dataclass(slots=True)
class Histogram:
    """Counts of observed values not yet handed over."""

    bounds: tuple[float, ...]
    buckets: list[Counter]
    total: Counter
    count: Counter
    _new: list[int] = field(init=False)
    _new_sum: float = 0.0

    def __post_init__(self) -> None:
        self._new = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._new[bisect_left(self.bounds, value)] += times
        self._new_sum += value * times

    def publish(self) -> None:
        """Hand over what was counted since the last time."""
        new, self._new = self._new, [0] * len(self._new)
        new_sum, self._new_sum = self._new_sum, 0.0
        cumulative = 0
        for counter, number in zip(self.buckets, new, strict=True):
            cumulative += number
            if cumulative:
                counter.increment(cumulative)
        if cumulative:
            self.total.increment(new_sum)
            self.count.increment(cumulative)


class EngineMetrics:
    """Everything the engine model exports, but for the heartbeat."""

    def __init__(self, factory: MetricFactory) -> None:
        """Make all metrics, at zero."""
        self._gauges = {name: factory.gauge(name, text, {}) for name, text in GAUGES.items()}
        self._counters = {name: factory.counter(name, text, {}) for name, text in COUNTERS.items()}
        self._histograms = {name: _make_histogram(factory, name, *rest) for name, rest in HISTOGRAMS.items()}
        self._lock = threading.Lock()
        self._last = EngineStats()

    def observe(self, name: str, seconds: float, times: int = 1) -> None:
        """Count a duration in the histogram `name`."""
        with self._lock:
            self._histograms[name].observe(max(seconds, 0.0), times)

    def publish(self, stats: EngineStats, *, is_up: bool) -> None:
        """Export a reading of the engine and what was observed since the last time."""
        for name, value in _gauge_values(stats, is_up).items():
            self._gauges[name].set(value)
        last, self._last = _counter_values(self._last), stats
        for name, value in _counter_values(stats).items():
            grown = value - last[name] if value >= last[name] else value
            if grown:
                self._counters[name].increment(grown)
        with self._lock:
            for histogram in self._histograms.values():
                histogram.publish()


def _make_histogram(factory: MetricFactory, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
    limits = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return Histogram(
        bounds=bounds,
        buckets=[factory.counter(f"{name}_bucket", text, {"le": limit}) for limit in limits],
        total=factory.counter(f"{name}_sum", text, {}),
        count=factory.counter(f"{name}_count", text, {}),
    )


def _gauge_values(stats: EngineStats, is_up: bool) -> dict[str, float]:
    return {
        "llm_waiting_requests": stats.num_waiting,
        "llm_waiting_tokens": stats.num_waiting_tokens,
        "llm_running_requests": stats.num_running,
        "llm_kv_cache_usage": stats.kv_usage,
        "llm_kv_block_size": stats.block_size,
        "llm_kv_num_blocks": stats.num_blocks,
        "llm_engine_up": float(is_up),
        "llm_pending_requests": stats.num_pending,
        "llm_loaded_adapters": len(stats.adapters),
        "llm_adapter_bytes": stats.adapter_bytes,
        "llm_step_seconds": stats.last_step_seconds,
    }


def _counter_values(stats: EngineStats) -> dict[str, float]:
    return {
        "llm_generated_tokens_total": stats.num_generated_tokens,
        "llm_prompt_tokens_total": stats.num_prompt_tokens,
        "llm_cached_tokens_total": stats.num_cached_tokens,
        "llm_preemptions_total": stats.num_preemptions,
        "llm_finished_requests_total": stats.num_finished,
        "llm_expired_requests_total": stats.num_expired,
        "llm_adapter_loads_total": stats.num_adapter_loads,
        "llm_draft_tokens_total": stats.num_draft_tokens,
        "llm_accepted_draft_tokens_total": stats.num_accepted_draft_tokens,
    }
