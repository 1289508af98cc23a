"""Limits of connections that uvicorn does not have: of headers, trailers, pipelined requests, unread answers, number.

This subclasses a protocol that uvicorn does not document. uvicorn's h11 implementation bounds headers, trailers and
pipelining, but takes 0.1 to 0.4 ms of processor time more for each request, which is 7 % of a core under ten times the
peak load, and has neither deadlines nor problem documents. Bodies are bounded in uploads.py and admission.py.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.unsent import ABORT
from app.problems import HeaderTooLarge, HeaderTooSlow, MalformedRequest, QueueFull, as_bytes
from app.runtime.files import file_limit

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Message, Receive, Scope, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from app.problems import Problem

log = logging.getLogger(__name__)

# Most bytes of the request line and header together; browsers send 1 KB, Node.js takes 16 KB.
HEADER_BYTES = 64 << 10
# Descriptors for what is no such connection: the log, weights, the loop's own, images by address …
SPARE_FILES = 48
# … and connections that were refused and still send, so that they get to read why.
LINGERING = 16
LINGER_SECONDS = 2.0
# Requests that wait behind one that is being answered. Browsers and HTTP libraries send none ahead.
MAX_PIPELINED = 32
# Bytes in a row that are no part of a body: between chunks, or in the trailers after them (RFC 9112, section 7.1.2).
FRAMING_BYTES = 64 << 10
ADDRESS_ADVICE = "Are characters outside ASCII in the address percent-encoded (RFC 3986, section 2.1)?"


class _RefusedError(Exception):
    """Ends the parsing of a connection that was refused."""


def too_large() -> HeaderTooLarge:
    """The refusal of a header beyond HEADER_BYTES."""
    return HeaderTooLarge(f"A request's header may have at most {HEADER_BYTES} bytes here.")


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits."""

    def __init__(
        self, *, header_seconds: float, send_seconds: float, max_connections: int, **uvicorns: Any
    ) -> None:
        super().__init__(**uvicorns)
        self._header_seconds = header_seconds
        self._send_seconds = send_seconds
        self._max_connections = max_connections
        # What arrives next belongs to a header; also while nothing arrives.
        self._in_header = True
        self._header_started = False
        self._header_bytes = 0
        # What is being answered; `cycle` is what was read last, and may have been sent ahead.
        self._answered: RequestResponseCycle | None = None
        # Bytes that came since the last byte of a body.
        self._framing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        # It was answered for the last time, and is closed when the client has read that.
        self.refused = False
        # What it still sends is thrown away.
        self._closing = False
        # A refusal whose turn comes after the answers before it.
        self._pending_error: Problem | None = None
        # The request whose body is no HTTP.
        self._malformed: RequestResponseCycle | None = None
        self._application = self.app
        self.app = self._answer
        self.quiet_since = self.loop.time()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room if there are too many; start the clock of the first header."""
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > self._max_connections and not self._finds_room():
            self._refuse(QueueFull("Every connection is taken by a request.", retry_after=1))
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock, and requests that were sent ahead; tell the one that is being answered."""
        self._stop_timer()
        self.pipeline.clear()
        if self._answered is not None and self._answered is not self.cycle:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives of a header."""
        if self._closing or self.transport.is_closing():
            return
        self.quiet_since = self.loop.time()
        if self._in_header:
            if self._header_bytes == 0 and not data.isascii():
                data = percent_encode_target(data)
            self._header_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        super().data_received(data)
        if self._in_header and self._header_bytes > HEADER_BYTES and not self._closing:
            self._refuse(too_large())
        if self._framing_bytes > FRAMING_BYTES and not self._closing:
            self.send_400_response("The trailers after the body have no end.")

    def on_message_begin(self) -> None:
        """The first byte of a header is there; a connection's first header has had the clock running before."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(QueueFull(f"At most {MAX_PIPELINED} requests may be sent ahead.", retry_after=1))
            raise _RefusedError
        self._header_started = True
        if self._timer is None:
            self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is there; from now on the application looks after the request.

        One that arrived in a single read, perhaps with other requests, is only counted here.
        """
        if self._parsed_header_bytes() > HEADER_BYTES:
            self._refuse(too_large())
            raise _RefusedError
        idle = not self.busy
        super().on_headers_complete()
        if idle:
            self._answered = self.cycle
        # Not before, because a path that is none ends the header with an exception.
        self._in_header = False
        self._stop_timer()

    def on_body(self, body: bytes) -> None:
        """Some bytes of a body."""
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next thing to arrive is another request's header."""
        super().on_message_complete()
        self._framing_bytes = 0
        self._in_header = True
        self._header_started = False
        self._header_bytes = 0

    def on_response_complete(self) -> None:
        """The connection has nothing to do, but for the rest of the answer that waits to be read."""
        self.quiet_since = self.loop.time()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._send_seconds, self._abort_unless_read)
        self._answered = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self._pending_error is not None and not self.busy and not self.transport.is_closing():
            self._send_error_and_close(self._pending_error)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP: a header here, a body through the application, which waits for it."""
        if self._closing:
            # on_headers_complete has refused it.
            return
        if self._in_header or not self.busy:
            self._refuse(MalformedRequest(f"{msg} {ADDRESS_ADVICE}"))
            return
        self._closing = True
        self._malformed = self.cycle
        self._malformed.keep_alive = False
        self._malformed.message_event.set()

    def _abort_unless_read(self) -> None:
        """Cut off a client that has not read the end of its answer by now, unless it has been given another one."""
        overdue = self.loop.time() >= self.quiet_since + self._send_seconds
        if overdue and self.transport.get_write_buffer_size():
            self.transport.abort()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. A body that is no HTTP meets it as an exception, so that one place answers and logs.

        Where it answers without the body, or has begun to, that answer stands.
        """

        async def intact() -> Message:
            message = await receive()
            broken = self._malformed
            if broken is not None and broken.scope is scope and not broken.response_started:
                raise MalformedRequest("The body's chunks are not as HTTP has them (RFC 9112, section 7.1).")
            return message

        scope.setdefault("extensions", {})[ABORT] = self.transport.abort
        await self._application(scope, intact, send)

    def _parsed_header_bytes(self) -> int:
        """Bytes of the request line and header that were just parsed, without spaces around values."""
        request_line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        return request_line + lines + len("\r\n")

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.busy:
            # A pipelined header that waits for its turn.
            self._start_timer()
        elif not self._header_started:
            # Opened in advance, as browsers do, and not needed.
            self.transport.close()
        else:
            self._refuse(
                HeaderTooSlow(
                    f"The header did not arrive completely within {self._header_seconds:g} seconds."
                )
            )

    def _refuse(self, problem: Problem) -> None:
        """Answer after the requests before it, and read no more."""
        self._stop_timer()
        self._closing = True
        log.info("a connection was refused: %s", problem.detail)
        if self.busy:
            self._pending_error = problem
        else:
            self._send_error_and_close(problem)

    def _send_error_and_close(self, problem: Problem) -> None:
        """Answer, and close once the client has read it.

        Closing a socket with unread bytes resets the connection, upon which the client's kernel drops the answer.
        """
        self.refused = True
        self.transport.write(as_bytes(problem))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        refused = [c for c in (self, *self._others()) if c.refused]
        if len(refused) > LINGERING:
            min(refused, key=_quiet_since).drop()

    def drop(self) -> None:
        """Close it at once, whether or not the client has read its answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _others(self) -> list[Connection]:
        """All other connections, also those that are closed as soon as the client has read the rest."""
        return [c for c in self.connections if isinstance(c, Connection) and c is not self]

    def _finds_room(self) -> bool:
        """Whether there is room, made if need be by closing the one that is quiet for longest and waits for nothing."""
        others = [c for c in self._others() if not c.refused]
        if len(others) < self._max_connections:
            return True
        quiet = [c for c in others if not c.busy]
        if quiet:
            min(quiet, key=_quiet_since).drop()
        return bool(quiet)


def percent_encode_target(data: bytes) -> bytes:
    """The start of a request with the bytes outside ASCII of its first line percent-encoded.

    curl and other simple clients send the query as it was typed; a parser of HTTP refuses that.
    """
    end = data.find(b"\r\n")
    line = data[: max(end, 0)]
    # Most often only the body behind it is not ASCII.
    if line.isascii():
        return data
    return b"".join(b"%%%02X" % byte if byte >= 0x80 else bytes([byte]) for byte in line) + data[end:]


def _quiet_since(connection: Connection) -> float:
    return connection.quiet_since


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(
        ("Unsupported upgrade request", "No supported WebSocket library", "Invalid HTTP request")
    )


def make_protocol(header_seconds: float, send_seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """What uvicorn makes connections with.

    Args:
        header_seconds: for a request's header to arrive.
        send_seconds: for the client to read some of an answer.
        max_connections: open at once; fewer where the process may open fewer files.
    """
    most = min(max_connections, max(1, file_limit() - SPARE_FILES))
    if most < max_connections:
        log.warning("only %d connections at once: the process may open %d files", most, file_limit())
    # What clients do wrong is told to them, and counted; uvicorn would log a line for each.
    logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
    made = partial(Connection, header_seconds=header_seconds, send_seconds=send_seconds, max_connections=most)
    return cast("type[asyncio.Protocol]", made)
