"""Decides which requests are watched, and tells metrics and journal how each has ended.

Knows requests, records and who takes them. Does not know how a request is placed or answered.

Invariants:
1. A request is watched where its caller asks for its ledger, where its tenant's tokens are limited, and otherwise by
   the configured share; all others pass through the express lane.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter

from gateway.call import upstream_block
from gateway.log import log
from gateway.observe.journal import Journal, MetricRow, Snapshot
from gateway.observe.ledger import EngineTimes, Ledger, durations, make_ledger
from gateway.observe.meters import Meters
from gateway.observe.observer import Observer, Usage
from gateway.observe.record import Record
from gateway.observe.tracing import Tracing
from gateway.wire.protobuf import request_id

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from gateway.observe.config import ObserveConfig
    from gateway.request import Request
    from gateway.safety.budgets import LevelRow

LEDGER_NOTE = b"x-ledger"
MAX_NOTED = 16  # ledgers in one stream's trailing metadata, which clients limit to 8 KiB
REMEMBERED = 512
TRACED = ("tenant", "instance", "outcome", "key", "request_id", "prompt_tokens", "completion_tokens")


class Observation:
    """All that is noted of requests."""

    def __init__(self, config: ObserveConfig, registry: CollectorRegistry) -> None:
        """Open the journal where there is to be one.

        Raises:
            OSError: the journal cannot be used.
        """
        dropped = Counter("gateway_journal_dropped", "Records that the journal could not keep.", registry=registry)
        self.journal = Journal(config.journal, dropped.inc) if config.journal is not None else None
        self.tracing = Tracing(config.tracing) if config.tracing is not None else None
        self.recent: deque[dict[str, int]] = deque(maxlen=REMEMBERED)  # durations of stages, in ns
        self.recent_first: deque[float] = deque(maxlen=REMEMBERED)  # seconds to the first answer
        self._meters = Meters(registry)
        self._credit = 0.0
        self.apply(config)

    def apply(self, config: ObserveConfig) -> None:
        """Watch another share of requests from now on."""
        self._sample = config.sample
        self._logs = config.log_requests
        # Besides requests whose callers are limited or ask for it:
        self.watches_some = self.tracing is not None or config.sample > 0

    @property
    def saved_levels(self) -> dict[str, tuple[float, int]]:
        """What tenants had left when an earlier gateway wrote it down: by bucket, with the ns of that moment."""
        return {} if self.journal is None else self.journal.saved_levels

    def arrived(self, request: Request) -> None:
        """Take a new request."""
        call = request.exchange.call
        if not call.is_routed:
            return
        if self.tracing is not None:
            request.span = self.tracing.begin(call.headers, request.arrived_ns)
        self._credit += self._sample
        limited = call.tenant is not None and call.tenant.counts_tokens
        if self._credit >= 1 or limited or call.wants_ledger:
            request.observer = Observer(note_gap=partial(self._gap, request))
            self._credit -= self._credit >= 1

    def ended(self, request: Request, instance: str, outcome: str) -> None:
        """Take a request that has ended, at this instance if at any."""
        call = request.exchange.call
        if not call.is_metered:
            return
        tenant, came = call.tenant_name, request.arrived_ns
        wait = (request.routed_ns - came) / 1e9 if request.routed_ns else None
        first = (request.first_ns - came) / 1e9 if request.first_ns else None
        if first is not None:
            self.recent_first.append(first)
        self._meters.ended(tenant, instance, outcome, wait, first)
        if request.screen is not None:
            for (rule, action, place), count in request.screen.found.items():
                self._meters.found(rule, action, place, count)
        if request.observer is not None or self.journal is not None or request.span is not None or self._logs:
            self._keep(request, instance, outcome)

    def _keep(self, request: Request, instance: str, outcome: str) -> None:
        """Add up what is known of a request, and make a record of it where somebody keeps one."""
        usage = request.observer.usage() if request.observer is not None else Usage()
        ledger = make_ledger(request.arrived_ns, request.routed_ns, time.time_ns(), _engine_times(usage))
        call = request.exchange.call
        self._meters.used(call.tenant_name, instance, usage)
        if (spent := durations(ledger)) is not None:
            self.recent.append(spent)
        if call.wants_ledger:
            _note(request, ledger)
        if self.journal is not None or request.span is not None or self._logs:
            self._write_down(request, _record(request, instance, outcome, usage, ledger))

    def _write_down(self, request: Request, record: Record) -> None:
        """Give a record to all who keep it."""
        if self.tracing is not None and request.span is not None:
            self.tracing.end(request.span, record.ledger, {name: getattr(record, name) for name in TRACED})
        if self.journal is not None:
            self.journal.write(record)
        if self._logs:
            _log(record)

    def upstream_block(self, request: Request, scheme: bytes, authority: bytes) -> bytes:
        """Return the encoded headers that open a request's stream at an instance, with its span where it has one."""
        call = request.exchange.call
        if self.tracing is None or request.span is None:
            return call.blocks.get((scheme, authority)) or upstream_block(call, scheme, authority)
        traced = replace(call, headers=self.tracing.onward(call.headers, request.span), blocks={})
        return upstream_block(traced, scheme, authority)

    def snapshot(self, families: Iterable[Metric], levels: list[LevelRow]) -> None:
        """Write metrics but histograms' buckets, and what tenants have left, into the journal."""
        if self.journal is None:
            return
        now = time.time_ns()
        rows: list[MetricRow] = [
            (now, sample.name, json.dumps(sample.labels) if sample.labels else "", sample.value)
            for metric in families
            for sample in metric.samples
            if not sample.name.endswith("_bucket")
        ]
        self.journal.write(Snapshot(rows, levels))

    def close(self) -> None:
        """Write and export what is waiting."""
        if self.tracing is not None:
            self.tracing.close()
        if self.journal is not None:
            self.journal.close()

    def _gap(self, request: Request, seconds: float) -> None:
        if request.instance is not None:
            self._meters.gap(request.exchange.call.tenant_name, request.instance.name, seconds)


def _engine_times(usage: Usage) -> EngineTimes | None:
    if usage.clock_ns is None or usage.queue_seconds is None or usage.ttft_seconds is None or not usage.e2e_seconds:
        return None
    return EngineTimes(*usage.clock_ns, usage.queue_seconds, usage.ttft_seconds, usage.e2e_seconds)


def _note(request: Request, ledger: Ledger) -> None:
    notes = request.exchange.notes
    known = json.loads(notes.get(LEDGER_NOTE, b"[]"))
    notes[LEDGER_NOTE] = json.dumps([*known, {"key": request.key} | ledger][-MAX_NOTED:]).encode()


def _num_messages(request: Request) -> int | None:
    """Return in how many messages the client was answered, None where nobody counted."""
    if request.observer is None:
        return None
    num_messages = request.observer.num_messages
    return min(1, num_messages) if request.exchange.call.is_answered_whole else num_messages


def _record(request: Request, instance: str, outcome: str, usage: Usage, ledger: Ledger) -> Record:
    return Record(
        key=request.key,
        tenant=request.exchange.call.tenant_name,
        method=request.exchange.call.method,
        instance=instance,
        outcome=outcome,
        attempts=request.attempts,
        concurrent=request.concurrent,
        messages=_num_messages(request),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        first_answer=request.first_ns or None,
        ledger=ledger,
        flags=request.screen.flags() if request.screen is not None else "",
        request_id=_client_id(request),
    )


def _client_id(request: Request) -> str:
    """Return what the client calls the request; empty where it does not, or sent too much for it to be kept."""
    return request_id(request.body()).decode("utf-8", "replace") if request.exchange.call.is_metered else ""


def _log(record: Record) -> None:
    """Write what is known of a request as one line; marks in ms since it came."""
    facts = asdict(record)
    marks = {"first_answer": facts.pop("first_answer")} | facts.pop("ledger")
    came = record.ledger["gateway_in"]
    since = {f"{mark}_ms": (at - came) / 1e6 for mark, at in marks.items() if at is not None and at != came}
    log("request", **{name: value for name, value in facts.items() if value not in {None, ""}}, **since)
