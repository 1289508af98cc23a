"""Spans: one for a request with its stages inside, under the caller's trace."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from app.http.request_context import QUIET_PATHS, RequestContextMiddleware
from app.http.unsent import UnsentAnswers
from app.observability.metrics import Metrics
from app.observability.tracing import trace_id
from tests.app.fakes import PHOTO, serving

os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
pytest.importorskip("opentelemetry.instrumentation.asgi")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from app.observability.spans import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from starlette.requests import Request

# The example of W3C Trace Context, section 3.2.
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PATHS = ("/segment", "/readyz")


async def segment(request: Request) -> Response:
    """Answers as the route of that name does: with stages, and with what is known of the batch."""
    request.state.timings.add_stage("queue", 0.25, ago=0.5)
    request.state.timings.add_stage("forward", 0.5)
    request.state.record |= {"batch": 3, "instances": 7, "client": None}
    return Response(b"{}")


async def readyz(request: Request) -> Response:
    """Ready unless it is asked to be anything else."""
    return Response(status_code=int(request.query_params.get("status", "200")))


async def fail(_: Request) -> Response:
    """Fails as no route should."""
    raise ValueError("unexpected")


async def leave(_: Request) -> Response:
    """Finds that the client has gone."""
    raise ClientDisconnect


def ask(method: str, url: str, headers: dict[str, str] | None = None) -> list[ReadableSpan]:
    """The spans of one request, in the order in which they ended."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(PATHS, QUIET_PATHS, exporter)
    app = Starlette(
        middleware=[
            Middleware(tracing.middleware),
            Middleware(
                RequestContextMiddleware,
                metrics=Metrics(PATHS, 60),
                unsent=UnsentAnswers(1 << 20, 60),
                tracing=tracing,
            ),
        ],
        routes=[
            Route("/segment", segment, methods=["POST"]),
            Route("/readyz", readyz),
            Route("/fail", fail),
            Route("/leave", leave),
        ],
    )

    async def run() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False)
        ) as client:
            # The transport insists on an answer, which a client that has gone does not get.
            with contextlib.suppress(AssertionError):
                await client.request(method, f"http://service{url}", headers=headers)

    asyncio.run(run())
    tracing.stop()
    return list(exporter.get_finished_spans())


def test_a_request_is_a_span_with_its_stages_inside_under_the_callers_trace() -> None:
    queue, forward, request = ask("POST", "/segment", {"traceparent": PARENT})
    assert (queue.name, forward.name, request.name) == ("queue", "forward", "POST /segment")
    assert request.kind is SpanKind.SERVER
    assert request.context is not None
    assert request.parent is not None
    assert format(request.context.trace_id, "032x") == trace_id(PARENT)
    assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"
    for stage, seconds in ((queue, 0.25), (forward, 0.5)):
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
        assert (stage.end_time or 0) - (stage.start_time or 0) == seconds * 1e9
    # The queue was left half a second before the forward pass ended.
    assert abs((queue.end_time or 0) - (forward.start_time or 0)) < 50_000_000


def test_a_span_says_what_the_log_says() -> None:
    *_, request = ask("POST", "/segment", {"X-Request-ID": "the-id"})
    attributes = request.attributes or {}
    assert attributes["http.request.method"] == "POST"
    assert attributes["url.path"] == "/segment"
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.response.body.size"] == 2
    assert attributes["maskserve.request_id"] == "the-id"
    assert (attributes["maskserve.batch"], attributes["maskserve.instances"]) == (3, 7)
    assert attributes["maskserve.reason"] == "ok"
    assert "maskserve.client" not in attributes


@pytest.mark.parametrize(
    ("method", "url", "name"),
    [
        ("GET", "/users/4711/secret", "GET"),
        ("GET", "/segment?categories=dog", "GET /segment"),
        ("BREW", "/coffee", "HTTP"),
    ],
)
def test_names_of_spans_hold_nothing_that_a_client_makes_up(method: str, url: str, name: str) -> None:
    (request,) = ask(method, url)
    assert request.name == name


def test_a_probe_has_a_span_only_when_it_fails() -> None:
    assert ask("GET", "/readyz") == []
    (request,) = ask("GET", "/readyz?status=503")
    assert (request.attributes or {})["http.response.status_code"] == 503


def test_a_failure_inside_is_an_error_and_has_its_reason() -> None:
    (request,) = ask("GET", "/fail")
    assert (request.attributes or {})["maskserve.reason"] == "internal"
    assert not request.status.is_ok


def test_a_request_whose_client_has_gone_is_a_span_too() -> None:
    (request,) = ask("GET", "/leave")
    attributes = request.attributes or {}
    assert attributes["maskserve.reason"] == "client-gone"
    assert "http.response.status_code" not in attributes


def test_the_service_traces_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("app.observability.spans.OTLPSpanExporter", lambda: exporter)

    async def run() -> None:
        async with serving(tracing=True) as (client, _):
            await client.post("/segment", content=PHOTO)
            await client.get("/healthz")

    asyncio.run(run())
    *stages, request = exporter.get_finished_spans()
    assert [stage.name for stage in stages] == ["read", "decode", "queue", "forward", "encode"]
    assert request.name == "POST /segment"
    assert (request.attributes or {})["maskserve.batch"] == 1
