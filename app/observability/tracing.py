"""Spans for OpenTelemetry: one for each request with one for each of its stages inside. Optional: `maskserve[tracing]`.

Where they go, and how many are kept, say OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from app.version import version

if TYPE_CHECKING:
    from collections.abc import Mapping

# W3C Trace Context, section 3.2: version, trace, caller's span, flags. Versions to come may say more at the end.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
NANOSECONDS = 1_000_000_000


class TracingError(Exception):
    """Spans were asked for, but the packages that send them are not installed."""


def trace_id(traceparent: str) -> str | None:
    """The trace that a request belongs to, from its `traceparent` header; None without a valid one."""
    match = TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None


class Tracing:
    """Sends the spans of exchanges that have ended, from a thread of its own."""

    def __init__(self, exporter: Any = None) -> None:
        """exporter: of OpenTelemetry's SDK; OTLP over HTTP if None. Raises TracingError."""
        try:
            from opentelemetry import trace  # noqa: PLC0415 - optional
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )
        except ImportError as error:
            raise TracingError(
                f"MASKSERVE_TRACING needs packages that are not installed ({error.name}): "
                "pip install 'maskserve[tracing]'"
            ) from None
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what is said here.
        resource = Resource.create({"service.name": "maskserve", "service.version": version()})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("maskserve", version())
        self._trace = trace
        self._read = TraceContextTextMapPropagator().extract

    def exchange(
        self,
        name: str,
        traceparent: str,
        seconds: float,
        stages: Mapping[str, tuple[float, float]],
        attributes: Mapping[str, Any],
    ) -> None:
        """An exchange has just ended after so many seconds. stages: name → seconds until it began, and that it took."""
        begun = time.time_ns() - round(seconds * NANOSECONDS)
        parent = self._read({"traceparent": traceparent})
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            start_time=begun,
            attributes={key: value for key, value in attributes.items() if value is not None},
        )
        inside = self._trace.set_span_in_context(span)
        for stage, (after, took) in stages.items():
            first = begun + round(after * NANOSECONDS)
            self._tracer.start_span(stage, context=inside, start_time=first).end(
                first + round(took * NANOSECONDS)
            )
        if attributes.get("http.response.status_code", 0) >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(begun + round(seconds * NANOSECONDS))

    def stop(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
