"""OpenTelemetry spans of requests, joined with those of the client and of Triton.

Knows OpenTelemetry, which is imported only where tracing is configured. Does not know how a request goes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.observe.config import TracingConfig
    from gateway.observe.ledger import Ledger
    from gateway.wire.headers import Headers

EXPORT_SECONDS = 3.0  # for a batch, retries included; a collector that is gone keeps the gateway's end waiting so long
CARRIED = (b"traceparent", b"tracestate")


class Tracing:
    """Makes a span for each request and exports it on a thread of its own (OTLP over HTTP)."""

    def __init__(self, config: TracingConfig) -> None:
        """Begin to export."""
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        sampling = importlib.import_module("opentelemetry.sdk.trace.sampling")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resource = importlib.import_module("opentelemetry.sdk.resources").Resource.create(
            {"service.name": config.service}
        )
        self._api: Any = importlib.import_module("opentelemetry.trace")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._propagator: Any = propagation.TraceContextTextMapPropagator()
        sampler = sampling.ParentBased(sampling.TraceIdRatioBased(config.sample))
        self._provider: Any = sdk.TracerProvider(sampler=sampler, resource=resource)
        exporter = otlp.OTLPSpanExporter(endpoint=config.endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer: Any = self._provider.get_tracer("gateway")

    def begin(self, headers: Headers, started_ns: int) -> Any:
        """Return the span of a request, a child of the client's where its metadata names one."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in CARRIED}
        parent = self._propagator.extract(carrier)
        return self._tracer.start_span("gateway.request", parent, self._api.SpanKind.SERVER, start_time=started_ns)

    def onward(self, headers: Headers, span: Any) -> Headers:
        """Return metadata that makes what an instance records a child of this span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(span))
        others = tuple((name, value) for name, value in headers if name not in CARRIED)
        return (*others, *((name.encode(), value.encode()) for name, value in carrier.items()))

    def end(self, span: Any, ledger: Ledger, facts: dict[str, Any]) -> None:
        """Conclude a span: its facts as attributes, the ledger's marks as events."""
        span.set_attributes({f"scalellm.{name}": value for name, value in facts.items() if value is not None})
        for stage, at in ledger.items():
            span.add_event(stage, timestamp=at)
        if facts["outcome"] != "ok":
            span.set_status(self._api.StatusCode.ERROR, facts["outcome"])
        span.end(end_time=ledger["gateway_out"])

    def close(self) -> None:
        """Export what is waiting."""
        self._provider.shutdown()
