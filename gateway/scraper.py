"""Reads instances' metrics ten times a second and asks those in doubt whether they are ready.

Knows Prometheus' text as far as needed, and hands reports to instances. Does not judge them.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.abort import ask_ready
from gateway.endpoint import Signal
from gateway.loads import Report
from gateway.log import log
from gateway.metrics_page import MetricsPage, ScrapeError

if TYPE_CHECKING:
    from gateway.instance import Instance

STALL_SECONDS = 0.5  # a loop that comes round this much late has itself stood still
WANTED = {
    "llm_waiting_requests": "waiting",
    "llm_running_requests": "running",
    "llm_kv_cache_usage": "kv_usage",
    "llm_engine_up": "engine_up",
    "llm_generated_tokens_total": "generated_tokens",
    "llm_step_seconds": "step_seconds",
}
HEARTBEAT = "llm_heartbeat"
MODEL_LABEL = re.compile(r'\bmodel="([^"]*)"')


def parse_report(text: str) -> Report:
    """Return the few figures of interest; unknown and malformed lines are passed over."""
    values: dict[str, float] = {}
    beats: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("llm_"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        if name not in WANTED and name != HEARTBEAT:
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        if not math.isfinite(number):
            continue
        if name == HEARTBEAT:
            model = MODEL_LABEL.search(labels)
            beats[model[1] if model else labels] = number
        else:
            values[WANTED[name]] = number
    up = values.pop("engine_up", None)
    return Report(
        waiting=values.get("waiting", 0.0),
        running=values.get("running", 0.0),
        kv_usage=values.get("kv_usage"),
        engine_up=None if up is None else up > 0,
        generated_tokens=values.get("generated_tokens", 0.0),
        step_seconds=values.get("step_seconds", 0.0),
        beats=beats,
    )


async def watch(instance: Instance, interval: Callable[[], float]) -> None:
    """Keep one instance's report and health current, for ever; `interval` says how often, in seconds."""
    page = None if instance.config.metrics is None else MetricsPage(instance.config.metrics)
    try:
        await _watch(instance, interval, page)
    finally:
        if page is not None:
            page.close()


async def _watch(instance: Instance, interval: Callable[[], float], page: MetricsPage | None) -> None:
    loop = asyncio.get_running_loop()
    probe = _Probe(instance)
    reported = True
    while True:
        if page is None:
            await instance.in_doubt.wait()  # before that there is nothing to read and nothing to ask
        began = loop.time()
        probe.ask_if_due(began)
        if page is not None:
            try:
                instance.take_report(parse_report(await page.read()))
                reported = _note(instance, reported, "")
            except ScrapeError as error:
                reported = _note(instance, reported, str(error))
        late = await _sleep_until(began + interval())
        if late > STALL_SECONDS:
            instance.endpoint.forgive(late)
        else:
            instance.check_beats()


def _note(instance: Instance, reported: bool, error: str) -> bool:
    if reported and error:
        log("scrape_failed", instance=instance.name, reason=error)
    elif not reported and not error:
        log("scrape_recovered", instance=instance.name)
    return not error


async def _sleep_until(when: float) -> float:
    loop = asyncio.get_running_loop()
    delay = max(0.0, when - loop.time())
    before = loop.time()
    await asyncio.sleep(delay)
    return loop.time() - before - delay


class _Probe:
    """At most one question at a time."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.is_asking = False

    def ask_if_due(self, now: float) -> None:
        if self.is_asking or not self.instance.endpoint.wants_probe(now):
            return
        self.is_asking = True
        ask_ready(self.instance, self._take)
        self.instance.pool.hub.flush()

    def _take(self, reason: str | None) -> None:
        self.is_asking = False
        if reason is None:
            self.instance.signal(Signal.PROBE_OK, "it is ready")
        else:
            self.instance.signal(Signal.FAILED, reason)
