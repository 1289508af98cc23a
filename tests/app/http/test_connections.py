"""What a connection makes of bytes that arrive together, or that are no HTTP: on a transport that only remembers."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.http import connections
from app.http.connections import HEADER_BYTES, Connection
from app.problems import MalformedRequest

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """Remembers what is written until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Echo:
    """An application that answers with the number of bytes in the body, and remembers what was wrong with bodies."""

    def __init__(self) -> None:
        self.malformed: list[MalformedRequest] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more, status = 0, scope["path"] != "/early", 200
        try:
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
        except MalformedRequest as problem:
            self.malformed.append(problem)
            status = problem.status
        body = str(size).encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


def answers(*reads: bytes, app: Any = None) -> list[tuple[int, bytes]]:
    """Statuses and bodies that go out for what comes in."""

    async def run() -> bytes:
        config = uvicorn.Config(app or Echo(), log_config=None, access_log=False)
        connection = Connection(
            config=config,
            server_state=ServerState(),
            app_state={},
            header_seconds=60,
            send_seconds=60,
            max_connections=1,
        )
        transport = Transport()
        connection.connection_made(transport)
        for read in reads:
            connection.data_received(read)
            for _ in range(20):  # turns of the loop: for each request, a few
                await asyncio.sleep(0)
        assert not connection.tasks
        connection.connection_lost(None)
        return transport.written

    written = asyncio.run(run())
    found = re.split(rb"HTTP/1.1 (\d+) [^\r]*\r\n", written)
    assert found[0] == b""
    return [
        (int(status), rest.partition(b"\r\n\r\n")[2])
        for status, rest in zip(found[1::2], found[2::2], strict=True)
    ]


def statuses(*reads: bytes, app: Any = None) -> list[int]:
    return [status for status, _ in answers(*reads, app=app)]


# Headers


def header(size: int, method: bytes = b"GET", more: bytes = b"") -> bytes:
    """A request line and header of so many bytes together."""
    begins = method + b" / HTTP/1.1\r\n" + more + b"X-Filler: "
    return begins + b"a" * (size - len(begins) - 4) + b"\r\n\r\n"


def path(size: int) -> bytes:
    """A header of so many bytes, most of them the path's."""
    return b"GET /" + b"a" * (size - 18) + b" HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("made", [header, path])
def test_the_limit_of_a_header_holds_in_a_single_read(made: Any) -> None:
    assert len(made(HEADER_BYTES)) == HEADER_BYTES
    assert statuses(made(HEADER_BYTES)) == [200]
    ((status, body),) = answers(made(HEADER_BYTES + 1))
    assert status == 431
    assert b"urn:maskserve:problem:header-too-large" in body
    assert b"at most 65536 bytes" in body


def test_the_limit_of_a_header_holds_however_it_is_cut() -> None:
    large = header(70_000)
    for cut in (10, HEADER_BYTES - 1, HEADER_BYTES + 1, len(large) - 1):
        assert statuses(large[:cut], large[cut:]) == [431]


def test_a_header_is_counted_without_what_arrives_with_it() -> None:
    body = b"b" * 200_000
    post = header(60_000, b"POST", b"Content-Length: %d\r\n" % len(body)) + body
    assert answers(post + header(60_000) + GET) == [(200, b"200000"), (200, b"0"), (200, b"0")]


def test_requests_before_a_header_that_is_too_large_are_answered_first() -> None:
    assert statuses(GET + GET + header(70_000) + GET) == [200, 200, 431]
    assert statuses(header(60_000) + header(70_000)) == [200, 431]


# What is no HTTP


@pytest.mark.parametrize(
    "reads",
    [
        pytest.param([CHUNKED + b"ZZ\r\n\r\n"], id="with the header"),
        pytest.param([CHUNKED, b"ZZ\r\n\r\n"], id="later"),
        pytest.param([CHUNKED + b"1\r\na\r\n", b"ZZ\r\n\r\n"], id="after a chunk"),
        pytest.param([CHUNKED, b"ZZ\r\n\r\n", GET], id="with a request after it"),
        pytest.param([CHUNKED + b"0\r\nno trailer\r\n\r\n"], id="in the trailer"),
    ],
)
def test_the_application_is_told_once_of_a_body_that_is_no_http(reads: list[bytes]) -> None:
    app = Echo()
    assert statuses(*reads, app=app) == [400]
    assert len(app.malformed) == 1


def test_an_answer_that_did_not_wait_for_the_body_is_the_only_one() -> None:
    early = CHUNKED.replace(b"/", b"/early", 1)
    assert statuses(early + b"ZZ\r\n\r\n") == [200]
    assert statuses(early, b"ZZ\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(b"no HTTP\r\n\r\n", id="request line"),
        pytest.param(b"GET http://[bad HTTP/1.1\r\n\r\n", id="address"),
        pytest.param(CHUNKED + b"ZZ\r\n\r\n", id="body"),
    ],
)
def test_requests_before_one_that_is_no_http_are_answered_first(wrong: bytes) -> None:
    assert statuses(wrong) == [400]
    assert statuses(GET + GET + wrong) == [200, 200, 400]
    assert statuses(GET, wrong) == [200, 400]


# What has no end


def test_trailers_without_end_are_malformed() -> None:
    app, trailer = Echo(), b"x-trailer: " + b"t" * 1000 + b"\r\n"
    assert statuses(CHUNKED + b"1\r\na\r\n0\r\n", *[trailer] * 100, app=app) == [400]
    assert len(app.malformed) == 1


def test_a_trailer_line_without_end_is_malformed() -> None:
    assert statuses(CHUNKED + b"1\r\na\r\n0\r\nx-trailer: ", *[b"t" * 1000] * 100) == [400]


def test_a_chunk_extension_without_end_is_malformed() -> None:
    assert statuses(CHUNKED + b"1;x=", *[b"t" * 1000] * 100) == [400]


def test_chunks_of_a_byte_are_no_endless_framing() -> None:
    chunks = b"1\r\na\r\n" * 100
    assert answers(CHUNKED, *[chunks] * 300, b"0\r\n\r\n") == [(200, b"30000")]


def test_requests_sent_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_PIPELINED", 2)
    assert statuses(GET * 1000) == [200, 200, 200, 429]
