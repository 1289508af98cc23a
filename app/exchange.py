"""What every HTTP exchange has, whichever route answers it: an id, a clock, a line in the log, and an end.

Pure ASGI middleware around the whole application. It is the last resort for errors that nobody expected, and
it ends connections so that a client which still sends its body gets to read the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from app.logs import FIELDS
from app.problems import Problem, respond

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

SANE_ID = re.compile(r"[!-~]{1,128}")
QUIET_PATHS = {
    "/healthz",
    "/livez",
    "/readyz",
}  # asked every few seconds; logged only where something is wrong
CLIENT_GONE = 499  # what nginx logs for it; never sent
# How long a refused client that still sends its body is heard out, so that it gets to read the refusal:
# closing a socket with unread bytes resets the connection, upon which the client's kernel drops the answer.
LINGER_SECONDS = 5.0


class Timings:
    """Seconds that each stage of one exchange took, for the `Server-Timing` header (W3C Server Timing)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.begun = clock()
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body of a `with` statement."""
        begun = self.clock()
        try:
            yield
        finally:
            self.stages[name] = self.clock() - begun

    def header(self) -> str:
        """`decode;dur=3.1, forward;dur=45.2, total;dur=50.0`, in milliseconds."""
        stages = {**self.stages, "total": self.clock() - self.begun}
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items())


class Exchanges:
    """The middleware. `request.state.id` and `request.state.timings` are its gifts to the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one HTTP exchange; other scopes, which are the life-cycle's, pass through."""
        if scope["type"] == "http":
            await Exchange(scope, receive, send).run(self.app)
        else:
            await self.app(scope, receive, send)


class Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        self.timings = Timings()
        self.method: str = scope["method"]
        # As sent, because a decoded path may hold line breaks.
        self.path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace")[:200]
        # HEAD is GET without the body, on every path.
        self.scope = {**scope, "method": "GET" if self.method == "HEAD" else self.method}
        self.scope["state"] = {**scope.get("state", {}), "id": self.id, "timings": self.timings}
        self.status = 0  # not yet answered
        self.unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        # The client waits for a word from us before it sends the body.
        self.holds_back = headers.get("expect", "").lower() == "100-continue"
        self.seconds = 0.0  # until the answer was sent
        self._receive = receive
        self._send = send

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer; whatever happens, there is one answer and one line in the log."""
        try:
            await app(self.scope, self.receive, self.send)
        except ClientDisconnect:
            self.status = self.status or CLIENT_GONE
        except Exception:
            log.exception("request %s failed", self.id, extra={FIELDS: {"id": self.id}})
            if self.status:
                raise  # the server can only cut the answer off
            await respond(Problem(), self.id)(self.scope, self.receive, self.send)
        finally:
            self.report()

    async def receive(self) -> Message:
        """The application's `receive`, which watches how far the body is read."""
        self.holds_back = False
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
            if self.unread:
                headers["Connection"] = "close"
            await self._send(message)
            return
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        more = message.get("more_body", False)
        self.seconds = self.timings.clock() - self.timings.begun
        if self.unread and not self.holds_back and not more:
            await self._send({"type": message["type"], "body": body, "more_body": True})
            body = b""
            await self.linger()
        await self._send({"type": message["type"], "body": body, "more_body": more})

    async def linger(self) -> None:
        """Read the rest of the body into nowhere: some clients only look at the answer when all is sent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.unread:
                    await self.receive()

    def report(self) -> None:
        """One line in the log."""
        milliseconds = round((self.seconds or self.timings.clock() - self.timings.begun) * 1000, 1)
        level = logging.DEBUG if self.path in QUIET_PATHS and self.status < 400 else logging.INFO
        fields = {
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": milliseconds,
        }
        log.log(
            level,
            "%s %s %d %.1f ms id=%s",
            self.method,
            self.path,
            self.status,
            milliseconds,
            self.id,
            extra={FIELDS: fields},
        )
