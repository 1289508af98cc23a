"""What every HTTP request has, whichever route answers it: an id, timings, a line in the log, and an end.

Pure ASGI middleware around the whole application. It turns unexpected errors into a 500, and closes connections so that
a client that is still sending its body can read the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect

from app.observability.logs import FIELDS
from app.observability.tracing import trace_id
from app.problems import Draining, Problem, respond

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.http.unsent import UnsentAnswers
    from app.observability.metrics import Metrics
    from app.observability.spans import Tracing

log = logging.getLogger(__name__)

VALID_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# Asked every few seconds; logged only where something is wrong.
QUIET_PATHS = {"/healthz", "/livez", "/readyz", "/metrics"}
# What nginx logs for it; never sent.
CLIENT_GONE = 499
# How long the body of a refused request is still read, so that the client can read the refusal: closing a socket with
# unread bytes resets the connection, and then the client's kernel drops the answer.
LINGER_SECONDS = 5.0
# A body of so few bytes is here already or on its way. It may take so long before a refusal is written, because
# then the connection can stay: the next attempt would otherwise have to open one.
SMALL_BODY = 1 << 20
SMALL_BODY_SECONDS = 0.01


class Timings:
    """Seconds that each stage of one request took, for the `Server-Timing` header (W3C Server Timing)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.started = clock()
        self.stages: dict[str, float] = {}
        # When each stage began, seconds after the exchange did.
        self.begins: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body of a `with` statement."""
        started = self.clock()
        try:
            yield
        finally:
            self.add_stage(name, self.clock() - started)

    def add_stage(self, name: str, seconds: float, ago: float = 0.0) -> None:
        """Record a stage that was measured elsewhere.

        Args:
            name: of the stage.
            seconds: that it took.
            ago: seconds since it ended.
        """
        self.stages[name] = seconds
        self.begins[name] = self.total() - ago - seconds

    def total(self) -> float:
        """Seconds since the request began."""
        return self.clock() - self.started

    def header(self) -> str:
        """`decode;dur=3.1, forward;dur=45.2, total;dur=50.0`, in milliseconds."""
        stages = {**self.stages, "total": self.total()}
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items())


def refuse(request: Request, problem: Problem) -> Response:
    """The problem as the answer, and as the reason in the log and the metrics."""
    request.state.record["reason"] = problem.slug
    return respond(problem, request.state.id)


class RequestContextMiddleware:
    """The middleware. It gives routes `request.state.id`, `request.state.timings`, and `request.state.record`, the
    fields that they add to the log's line.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, unsent: UnsentAnswers, tracing: Tracing | None = None
    ) -> None:
        self.app = app
        self.unsent = unsent
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one HTTP request; other scopes, which belong to the life cycle, pass through."""
        if scope["type"] == "http":
            paced = self.unsent.sender(scope, send)
            await RequestContext(scope, receive, paced, self.metrics, self.tracing).run(self.app)
        else:
            await self.app(scope, receive, send)


class RequestContext:
    """One request and its response."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, metrics: Metrics, tracing: Tracing | None
    ) -> None:
        # Of those that are named twice the first one counts, as in Starlette, which searches them all for each name.
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        self.metrics = metrics
        self.tracing = tracing
        self.traceparent = headers.get(b"traceparent", "")
        given = headers.get(b"x-request-id", "")
        self.id = given if VALID_REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        self.timings = Timings()
        self.method: str = scope["method"]
        # The path as it was sent, because a decoded path may hold line breaks.
        self.path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace")[:200]
        # HEAD is GET without the body, on every path.
        self.scope = {**scope, "method": "GET" if self.method == "HEAD" else self.method}
        self.record: dict[str, Any] = {}
        self.scope["state"] = {
            **scope.get("state", {}),
            "id": self.id,
            "timings": self.timings,
            "record": self.record,
        }
        # The status of the answer; 0 until it has begun.
        self.status = 0
        length = headers.get(b"content-length", "")
        self.unread = length not in ("", "0") or b"transfer-encoding" in headers
        self.small = length.isdecimal() and len(length) < 10 and int(length) <= SMALL_BODY
        # The client waits for 100 Continue before it sends the body.
        self.expects_continue = headers.get(b"expect", "").lower() == "100-continue"
        # Seconds until the answer was sent.
        self.seconds = 0.0
        # Bytes of the answer's body that were sent.
        self.bytes = 0
        self._receive = receive
        self._send = send

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer; whatever happens, there is one answer and one line in the log."""
        try:
            await app(self.scope, self.receive, self.send)
        except ClientDisconnect:
            self.status = self.status or CLIENT_GONE
            self.record["reason"] = "client-gone"
        except asyncio.CancelledError:
            # The server cancels it, because it has no more time to give.
            if self.status:
                raise
            self.record["reason"] = Draining.slug
            await respond(Draining(), self.id)(self.scope, self.receive, self.send)
        except Exception:
            log.exception("request %s failed", self.id, extra={FIELDS: {"id": self.id}})
            if self.status:
                # The server can only cut the answer off.
                raise
            self.record["reason"] = Problem.slug
            await respond(Problem(), self.id)(self.scope, self.receive, self.send)
        finally:
            self.report()

    async def receive(self) -> Message:
        """The application's `receive`, which watches how far the body is read."""
        self.expects_continue = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.unread = False
        return message

    async def send(self, message: Message) -> None:
        """The application's `send`, which completes headers and sees to the end of the connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            headers["Server-Timing"] = self.timings.header()
            if self.small and self.unread and not self.expects_continue:
                await self.drain_body(SMALL_BODY_SECONDS)
            if self.unread:
                headers["Connection"] = "close"
            await self._send(message)
            return
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        more = message.get("more_body", False)
        self.seconds = self.timings.total()
        self.bytes += len(body)
        if not more:
            self.record.setdefault("reason", self.default_reason())
            self.annotate_span()
        if self.unread and not self.expects_continue and not more:
            await self._send({"type": message["type"], "body": body, "more_body": True})
            body = b""
            await self.drain_body(LINGER_SECONDS)
        await self._send({"type": message["type"], "body": body, "more_body": more})

    def default_reason(self) -> str:
        """The reason of an answer that nothing else has given one."""
        return "ok" if self.status < 400 else "error"

    async def drain_body(self, seconds: float) -> None:
        """Read and drop the rest of the body, for at most so many seconds.

        Some clients only look at the answer when all is sent.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.unread:
                    await self.receive()

    def report(self) -> None:
        """One line in the log, one count, and the rest of a span that had no end of a response."""
        seconds = self.seconds or self.timings.total()
        stages = {**self.timings.stages, "total": seconds}
        reason = self.record.setdefault("reason", self.default_reason())
        self.metrics.record_request(self.method, self.path, self.status, reason, stages)
        if self.path == "/segment" and self.status == 200:
            self.metrics.response_bytes.observe(self.bytes)
        quiet = self.path in QUIET_PATHS and self.status < 400
        fields = {
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(seconds * 1000, 1),
            "bytes": self.bytes,
            **self.record,
            "stages_ms": {name: round(took * 1000, 1) for name, took in self.timings.stages.items()},
        }
        if (trace := trace_id(self.traceparent)) is not None:
            fields["trace_id"] = trace
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d %.1f ms id=%s",
            self.method,
            self.path,
            self.status,
            fields["ms"],
            self.id,
            extra={FIELDS: fields},
        )
        self.annotate_span()

    def annotate_span(self) -> None:
        """Add what is known of the request to its span, where spans are collected; only the first call does."""
        tracing, self.tracing = self.tracing, None
        if tracing is None:
            return
        stages = {name: (self.timings.begins[name], took) for name, took in self.timings.stages.items()}
        attributes = {
            "http.response.body.size": self.bytes,
            "maskserve.request_id": self.id,
            **{f"maskserve.{name}": value for name, value in self.record.items()},
        }
        tracing.annotate(self.timings.total(), stages, attributes)
