"""What the gateway tries again, with the shipped configuration in a real nginx and replicas that fail on demand."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from deploy.tests.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

SECONDS = 20
# What a replica does with a request: answer with this status, or break the connection off.
Plan = list[int | None]


def replica(plan: Plan, seen: list[bytes]) -> ThreadingHTTPServer:
    """A replica on a free port. plan: for each request, and 200 after the last. seen: gets their bodies."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["content-length"])))
            status = plan.pop(0) if plan else 200
            if status is None:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Gateway, list[list[bytes]]]]]:
    """Starts the gateway before replicas with these plans; also gives the bodies that each has seen."""
    with ExitStack() as stack:

        def start(*plans: Plan, for_ray: bool = False) -> tuple[Gateway, list[list[bytes]]]:
            seen: list[list[bytes]] = [[] for _ in plans]
            servers = [stack.enter_context(replica(*pair)) for pair in zip(plans, seen, strict=True)]
            for server in servers:
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
                stack.callback(server.shutdown)
            addresses = [f"127.0.0.1:{server.server_port}" for server in servers]
            gateway = Gateway(tmp_path, addresses, for_ray=for_ray)
            return stack.enter_context(gateway), seen

        yield start


def post(gateway: Gateway) -> int:
    """The status of one request."""
    request = urllib.request.Request(f"{gateway.url}/segment", b"image")
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "nginx does not start"


def test_a_request_starts_again_where_every_replica_has_failed(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]],
) -> None:
    """As after an address has come or gone, when nginx gives up what it has just been trying."""
    gateway, [seen] = start([None])
    assert post(gateway) == 200
    assert seen == [b"image", b"image"]


def test_it_ends_where_they_fail_again(start: Callable[..., tuple[Gateway, list[list[bytes]]]]) -> None:
    gateway, [seen] = start([None] * 9)
    assert post(gateway) == 503
    assert len(seen) == 2


def test_a_replica_is_asked_again_at_once_after_failures(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]],
) -> None:
    """The one that has just come back must take over from the next that is upgraded."""
    gateway, seen = start([503] * 3, [200] * 9 + [503] * 9)
    assert Counter(post(gateway) for _ in range(12)) == {200: 12}
    assert len(seen[0]) > 3


def test_a_busy_replica_is_taken_at_its_word(start: Callable[..., tuple[Gateway, list[list[bytes]]]]) -> None:
    gateway, [seen, other] = start([429], [429])
    assert post(gateway) == 429
    assert len(seen) + len(other) == 1


def test_a_request_that_makes_a_replica_fail_does_so_once(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]],
) -> None:
    gateway, seen = start([500], [500])
    assert post(gateway) == 500
    assert sum(map(len, seen)) == 1


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_proxy_of_ray_that_has_lost_its_replica_is_not_the_last_word(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]], status: int
) -> None:
    """404 from a proxy that does not know the service yet, 500 for a replica that was lost with the request."""
    gateway, [lost, *others] = start([status] * 9, [], [], for_ray=True)
    assert Counter(post(gateway) for _ in range(6)) == {200: 6}
    assert lost
    assert sum(map(len, others)) == 6


def test_a_request_that_ends_its_replica_on_ray_does_not_end_all_of_them(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]],
) -> None:
    gateway, seen = start(*([500] * 9 for _ in range(5)), for_ray=True)
    assert post(gateway) == 500
    assert sum(map(len, seen)) == 3


def test_a_lost_node_of_ray_may_fail_a_request_twice(
    start: Callable[..., tuple[Gateway, list[list[bytes]]]],
) -> None:
    """Its proxy breaks off, and the proxy of another node has sent to its replica."""
    gateway, seen = start([None], [500], [], for_ray=True)
    assert [post(gateway) for _ in range(3)] == [200] * 3
    assert sum(map(len, seen)) == 5
