"""What the gateway holds off by itself, with the shipped configuration in a real nginx."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from deploy.tests.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CONNECTIONS = 16
BEGUN = b"POST /segment HTTP/1.1\r\nHost: maskserve\r\nContent-Length: 9\r\nConnection: close\r\n\r\n"
SECONDS = 20


class Replica(BaseHTTPRequestHandler):
    """Answers at once."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, args=(0.05,), daemon=True).start()
        with Gateway(tmp_path, [f"127.0.0.1:{replica.server_port}"]) as running:
            yield running
        replica.shutdown()


def begin(gateway: Gateway, address: str) -> socket.socket:
    """A request from that address whose body is still to come."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", gateway.port), SECONDS, (address, 0))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nginx does not start"
        else:
            client.sendall(BEGUN)
            return client


def finish(client: socket.socket) -> tuple[int, bytes]:
    """Send the body; status and body of the answer."""
    with contextlib.suppress(OSError):
        client.sendall(b"123456789")
    answer = b""
    while piece := client.recv(65_536):
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_a_client_has_so_many_requests_open_and_others_are_not_affected(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(begin(gateway, "127.0.0.1")) for _ in range(CONNECTIONS + 1)]
        # Nothing says in which order nginx reads them; the one that is refused is answered before its body.
        [too_many], _, _ = select.select(opened, [], [], SECONDS)
        status, body = finish(too_many)
        assert status == 429
        assert json.loads(body)["type"] == "urn:maskserve:problem:too-many-requests"
        another = stack.enter_context(begin(gateway, "127.0.0.2"))
        assert finish(another) == (200, b"{}")
        assert [finish(client)[0] for client in opened if client is not too_many] == [200] * CONNECTIONS
