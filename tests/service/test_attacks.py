"""Attacks on a real process: neighbours and probes are answered, and nothing is held on to afterwards.

Each is small for the attacker and was expensive for the service once; attacks.py has them. The bounds are those of a
machine that has nothing else to do; where it has, they are multiples of what an ordinary request took just before.
"""

from __future__ import annotations

import queue
import re
import resource
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from . import attacks
from .conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds at most, and on a slow machine how many times the slowest ordinary request.
NEIGHBOUR_SECONDS, NEIGHBOUR_FACTOR = 2.0, 20
PROBE_SECONDS, PROBE_FACTOR = 0.5, 5
# Above the loaded model: of the service's own address space by the kernel's limit, of all processes by samples.
MOST_MEMORY = 2 << 30
MEMORY_KEPT = 100 << 20
SETTLE_SECONDS = 10.0
SEND_SECONDS = 2
MOST_CONNECTIONS = 40
PHOTO = attacks.noise(64, 48)


def family_bytes(process: int) -> int:
    """Memory of a process and its children that is theirs alone, and what they share once."""
    total = 0
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for one in [str(process), *children]:
        with suppress(OSError):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE)[1]) << 10
    return total


class Neighbour(threading.Thread):
    """Asks for instances and for health all the time, and remembers the slowest answers."""

    def __init__(self, url: str, process: int) -> None:
        super().__init__(daemon=True)
        self.url, self.process = url, process
        self.done = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.slowest, self.slowest_probe, self.most_memory = 0.0, 0.0, 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client, ThreadPoolExecutor(1) as probes:
            while not (self.done.wait(0.05) and self.statuses):
                probe = probes.submit(client.get, "/healthz")
                answer = client.post("/segment?max_instances=1", content=PHOTO)
                self.statuses[answer.status_code] += 1
                self.statuses[probe.result().status_code] += 1
                self.slowest = max(self.slowest, answer.elapsed.total_seconds())
                self.slowest_probe = max(self.slowest_probe, probe.result().elapsed.total_seconds())
                self.most_memory = max(self.most_memory, family_bytes(self.process))


@pytest.fixture(scope="module")
def house(start_for_module: Callable[..., Any]) -> Any:
    """One server, warm in its memory too, which the kernel refuses more than MOST_MEMORY from then on.

    Each decoder process has a limit of its own.
    """
    # A fork would come to own memory that it shared.
    running = start_for_module(
        forked=False, send_timeout=SEND_SECONDS, max_connections=MOST_CONNECTIONS, url_hosts="*"
    ).wait_until_ready()
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        for _ in range(4):
            assert client.post("/segment", content=attacks.noise(1000, 800)).status_code == 200
    pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[0])
    _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.prlimit(running.process.pid, resource.RLIMIT_AS, (limit, hard))
    return running


def held(url: str) -> dict[str, float]:
    """What the accounts say that clients hold."""
    text = httpx.get(f"{url}/metrics").text
    names = ("queue_requests", "queue_pixels", "queue_bytes", "decoding_bytes", "unsent_bytes")
    return {name: float(re.search(rf"^maskserve_{name} (\S+)$", text, re.MULTILINE)[1]) for name in names}


@contextmanager
def nobody_else_notices(house: Any) -> Iterator[None]:
    """Hold what is promised to neighbours during the block, and of memory during and after it."""
    before = family_bytes(house.process.pid)
    answers = [httpx.post(f"{house.url}/segment?max_instances=1", content=PHOTO) for _ in range(5)]
    usual = max(answer.elapsed.total_seconds() for answer in answers)
    neighbour = Neighbour(house.url, house.process.pid)
    neighbour.start()
    try:
        yield
    finally:
        neighbour.done.set()
        neighbour.join(PATIENCE)
    assert set(neighbour.statuses) == {200}, neighbour.statuses
    assert neighbour.slowest < max(NEIGHBOUR_SECONDS, NEIGHBOUR_FACTOR * usual)
    assert neighbour.slowest_probe < max(PROBE_SECONDS, PROBE_FACTOR * usual)
    assert neighbour.most_memory < before + MOST_MEMORY
    end = time.monotonic() + SETTLE_SECONDS
    while (accounts := held(house.url)) and any(accounts.values()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(accounts.values()), accounts
    while (after := family_bytes(house.process.pid)) > before + MEMORY_KEPT and time.monotonic() < end:
        time.sleep(0.1)
    assert after <= before + MEMORY_KEPT
    complaints = [line for line in house.lines_so_far() if "Traceback" in line or " ERROR " in line]
    assert complaints == []


def twice(house: Any, content: bytes, kind: str) -> list[httpx.Response]:
    """The answers to the same body, sent by two clients at once."""

    def send(_: int) -> httpx.Response:
        return httpx.post(
            f"{house.url}/segment", content=content, headers={"Content-Type": kind}, timeout=PATIENCE
        )

    with ThreadPoolExecutor(2) as clients:
        return list(clients.map(send, range(2)))


@pytest.mark.parametrize("name", attacks.FILES)
def test_a_hostile_file_harms_nobody_else(house: Any, name: str) -> None:
    content = attacks.FILES[name]()
    with nobody_else_notices(house):
        for response in twice(house, content, "image/png"):
            assert response.status_code in (200, 413, 422, 429), response.text


@pytest.mark.parametrize("name", attacks.DOCUMENTS)
def test_a_hostile_document_is_refused_unread(house: Any, name: str) -> None:
    content = attacks.DOCUMENTS[name]()
    with nobody_else_notices(house):
        for response in twice(house, content, "application/json"):
            assert response.status_code in (400, 413), response.text


def test_trailers_without_end_are_cut_off(house: Any) -> None:
    with nobody_else_notices(house):
        answer = attacks.endless_trailers(house.url)
    assert not answer or answer.startswith(b"HTTP/1.1 4")


def test_requests_that_are_sent_ahead_are_bounded(house: Any) -> None:
    with nobody_else_notices(house), ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(attacks.requests_ahead, [house.url] * 3))
    for answer in answers:
        assert answer.count(b"HTTP/1.1 200") < 200


def test_answers_that_are_never_read_are_let_go(house: Any) -> None:
    photo = attacks.noise(2500, 1600)
    with nobody_else_notices(house):
        unread = [attacks.unread_answer(house.url, photo) for _ in range(4)]
        try:
            for connection in unread[:2]:
                attacks.form_behind_it(connection, PHOTO, 20)
            end = time.monotonic() + 30
            while not any(held(house.url).values()) and time.monotonic() < end:
                time.sleep(0.05)
            while any(held(house.url).values()) and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            for connection in unread:
                connection.close()


def test_more_connections_than_the_limit_make_room_for_each_other(house: Any) -> None:
    with nobody_else_notices(house):
        opened = [attacks.connect(house.url) for _ in range(3 * MOST_CONNECTIONS)]
        try:
            time.sleep(0.5)
            sockets = [
                link
                for link in Path(f"/proc/{house.process.pid}/fd").iterdir()
                if str(link.readlink()).startswith("socket:")
            ]
            assert len(sockets) < 2 * MOST_CONNECTIONS
        finally:
            for connection in opened:
                connection.close()


@pytest.mark.parametrize("path", ["/", "/segment", "/healthz", "/nothing"])
def test_a_length_of_five_thousand_digits_is_a_bad_request(house: Any, path: str) -> None:
    with attacks.connect(house.url) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % (path.encode(), b"9" * 5000)
        )
        connection.shutdown(1)
        assert attacks.read_all(connection).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("url", ["https://a..b/", "https://" + "a" * 64 + ".com/", "https://\x00/"])
def test_an_address_that_dns_cannot_have_is_the_clients_error(house: Any, url: str) -> None:
    response = httpx.post(f"{house.url}/segment", json={"url": url})
    assert response.status_code == 422, response.text


def test_an_upgrade_is_not_logged_and_changes_nothing(house: Any) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert httpx.get(f"{house.url}/healthz", headers=headers).status_code == 200
    assert [line for line in house.lines_so_far() if "pgrade" in line] == []


def test_a_host_that_is_none_stops_the_start(start: Callable[..., Any]) -> None:
    running = start(url_hosts="a:b")
    assert running.ended() == 1
    with pytest.raises(AssertionError, match="is no host to fetch images from"):
        running.wait_for(re.compile("is ready"))
    assert not any("Traceback" in line for line in running.log)


def test_images_of_a_form_that_was_read_are_answered_while_the_service_drains(
    start: Callable[..., Any], model_file: Path
) -> None:
    server = start(max_batch_size=1, max_queue_requests=2).wait_until_ready()
    files = [("image", ("a.png", attacks.noise(320, 240), "image/png"))] * 12
    statuses: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        with httpx.stream("POST", f"{server.url}/segment", files=files, timeout=PATIENCE) as response:
            for line in response.iter_lines():
                statuses.put(line)
        statuses.put("")

    threading.Thread(target=ask, daemon=True).start()
    lines = [statuses.get(timeout=PATIENCE)]
    server.process.send_signal(signal.SIGTERM)
    while line := statuses.get(timeout=PATIENCE):
        lines.append(line)
    assert len(lines) == 12
    assert not any("urn:maskserve:problem" in line for line in lines), lines
    assert server.ended() == 0
