"""OpenTelemetry's spans: one for each request, with one for each of its stages inside. Needs `maskserve[tracing]`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app.observability.metrics import METHODS
from app.version import version

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.types import ASGIApp, Scope

NANOSECONDS = 1_000_000_000


class SpanProcessor(BatchSpanProcessor):
    """Exports spans from a thread of its own, but not those of probes that succeeded."""

    def __init__(self, exporter: SpanExporter, quiet_paths: Collection[str]) -> None:
        super().__init__(exporter)
        self._quiet_paths = quiet_paths

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span."""
        attributes = span.attributes or {}
        status = attributes.get("http.response.status_code", 0)
        if attributes.get("url.path") in self._quiet_paths and isinstance(status, int) and status < 400:
            return
        super().on_end(span)


class Tracing:
    """The spans of one application."""

    def __init__(
        self, paths: Collection[str], quiet_paths: Collection[str] = (), exporter: SpanExporter | None = None
    ) -> None:
        """Start the thread that exports.

        Args:
            paths: those that may be part of a span's name; any other path could be anything that a client makes up.
            quiet_paths: whose requests get spans only if they fail.
            exporter: by default OTLP over HTTP, as OpenTelemetry's environment variables say.
        """
        self._paths = frozenset(paths)
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        resource = Resource.create({"service.name": "maskserve", "service.version": version()})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(SpanProcessor(exporter or OTLPSpanExporter(), quiet_paths))
        self._tracer = self._provider.get_tracer("maskserve", version())

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The application with a span around every request; it must be the outermost middleware."""
        return OpenTelemetryMiddleware(
            app,
            default_span_details=self._name,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            exclude_spans=["receive", "send"],
        )

    def _name(self, scope: Scope) -> tuple[str, dict[str, Any]]:
        method = scope.get("method", "")
        name = method if method in METHODS else "HTTP"
        path = scope.get("path", "")
        return f"{name} {path}" if path in self._paths else name, {}

    def annotate(
        self, seconds: float, stages: Mapping[str, tuple[float, float]], attributes: Mapping[str, Any]
    ) -> None:
        """Complete the span of the current request, before the last message of its response is sent.

        Args:
            seconds: since the request began.
            stages: name → seconds from the beginning of the request to that of the stage, and the stage's duration.
            attributes: None where a value is not known.
        """
        span = trace.get_current_span()
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        request_start = time.time_ns() - round(seconds * NANOSECONDS)
        for stage, (begins, duration) in stages.items():
            start = request_start + round(begins * NANOSECONDS)
            self._tracer.start_span(stage, start_time=start).end(start + round(duration * NANOSECONDS))

    def stop(self) -> None:
        """Export what is left, and end the thread."""
        self._provider.shutdown()
