"""Prometheus metrics of requests by tenant and instance.

Knows names and labels. Labels are tenants and instances of the configuration, so their number is bounded.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from gateway.cells import Count, Counts, Spread, Spreads
from gateway.observe.observer import Usage

LABELS = ["tenant", "instance"]
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
GAP_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Meters:
    """What is measured of every request, and of watched ones."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all."""
        ended = Counts("gateway_tenant_requests", "Requests that ended.", ["tenant", "outcome"], registry)
        wait = Spreads("gateway_wait_seconds", "From arrival to an instance.", ["tenant"], WAIT_BUCKETS, registry)
        first = Spreads(
            "gateway_first_answer_seconds", "From arrival to the first response.", LABELS, WAIT_BUCKETS, registry
        )
        gap = Histogram(
            "gateway_gap_seconds", "Between responses of a watched request.", LABELS,
            buckets=GAP_BUCKETS, registry=registry,
        )  # fmt: skip
        self._found = Counter(
            "gateway_content_findings", "What content rules have found.", ["rule", "action", "place"], registry=registry
        )
        tokens = Counter(
            "gateway_tokens", "Tokens of watched requests.", [*LABELS, "kind"], registry=registry
        )  # fmt: skip
        self._ended, self._wait, self._first = ended.cell, wait.cell, first.cell
        self._cells: dict[tuple[str, str, str], tuple[Count, Spread, Spread]] = {}  # by tenant, instance, outcome
        self._tokens, self._gap = cache(tokens.labels), cache(gap.labels)

    def gap(self, tenant: str, instance: str, seconds: float) -> None:
        """Take the time between two responses."""
        self._gap(tenant, instance).observe(seconds)

    def ended(self, tenant: str, instance: str, outcome: str, wait: float | None, first: float | None) -> None:
        """Take the end of a request; times in seconds, None where it did not come so far."""
        cells = self._cells.get((tenant, instance, outcome))
        if cells is None:
            cells = self._ended((tenant, outcome)), self._wait(tenant), self._first(tenant, instance)
            self._cells[tenant, instance, outcome] = cells
        ended, waits, firsts = cells
        ended.value += 1
        if wait is not None:
            waits.observe(wait)
        if first is not None:
            firsts.observe(first)

    def found(self, rule: str, action: str, place: str, count: int) -> None:
        """Take findings of a content rule."""
        self._found.labels(rule, action, place).inc(count)

    def used(self, tenant: str, instance: str, usage: Usage) -> None:
        """Take the tokens of a watched request."""
        for kind, count in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            if count:
                self._tokens(tenant, instance, kind).inc(count)
