"""`maskserve healthcheck` as a container's HEALTHCHECK runs it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from app.commands.healthcheck import check
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DRAINING = b'{"type": "urn:maskserve:problem:draining", "detail": "The service is shutting down."}'


class Service(BaseHTTPRequestHandler):
    """Well, but not ready."""

    def do_GET(self) -> None:
        status, body = (200, b'{"status":"ok"}') if self.path == "/healthz" else (503, DRAINING)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_service_that_answers_200_is_healthy(port: int) -> None:
    assert check(Settings(port=port), "/healthz", 3) == (0, f"http://127.0.0.1:{port}/healthz: ok")


def test_a_service_that_listens_everywhere_is_asked_on_this_machine(port: int) -> None:
    assert check(Settings(host="0.0.0.0", port=port), "/healthz", 3)[0] == 0


def test_the_detail_of_the_problem_is_the_reason(port: int) -> None:
    status, line = check(Settings(port=port), "/readyz", 3)
    assert status == 1
    assert line == f"http://127.0.0.1:{port}/readyz: 503 The service is shutting down."


def test_no_service_is_unhealthy() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        status, line = check(Settings(port=unused.getsockname()[1]), "/healthz", 3)
    assert (status, line.rpartition(": ")[2]) == (1, "Connection refused")


def test_no_answer_in_time_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, line = check(Settings(port=silent.getsockname()[1]), "/healthz", 0.1)
    assert status == 1
    assert line.endswith("no answer within 0.1 seconds")


def test_another_protocol_at_the_port_is_unhealthy() -> None:
    def speak(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail.example.com ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, args=[listener])
        thread.start()
        status, line = check(Settings(port=listener.getsockname()[1]), "/healthz", 3)
        thread.join()
    assert status == 1
    assert "is not HTTP" in line
