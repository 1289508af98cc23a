"""What clients, probes, metrics and the exit code say of each fault: real processes whose engine fails on demand.

| fault | its client | the others | /healthz, /readyz | metrics | exit code |
|---|---|---|---|---|---|
| poison image in a batch | 500 | their answers | 200, 200 | worker event "failed" | – |
| the worker's own code raises | 500 | their answers | 200, 200 | worker event "failed" | – |
| an answer that cannot be encoded | 500 | their answers | 200, 200 | request "internal" | – |
| out of memory | its answer | their answers | 200, 200 | "out-of-memory", smaller batches | – |
| client leaves the queue | – | their answers | 200, 200 | dropped "cancelled" | – |
| client leaves while it runs | – | their answers | 200, 200 | request "client-gone" | – |
| deadline passes in the queue | 504, or 429 before | their answers | 200, 200 | request by reason | – |
| fatal device error, death of the worker | 503 | 503 | 503, 503, then gone | – (the process ends) | 1 |
| hang past the limit | 503 | 503 | 503, 503 | healthy 0 | 1 |
| SIGTERM under load | – | their answers | 200, 503 | ready 0 | 0 |
| a second SIGTERM | connection ends | connection ends | gone | – | 0 |
| SIGTERM while torch never comes back | 503 after the drain | 503 after the drain | 200, 503 | – | 0 |
| SIGKILL under load | connection ends | connection ends | gone | – | -9 |
| full disk for the log | their answers | their answers | 200, 200 | images are counted | 0 |
| no file descriptors left | waits for room | their answers | 200, 200 | can be read | 0 |
"""

from __future__ import annotations

import asyncio
import io
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from .conftest import PATIENCE, ROOT, environment
from .faulty import DEATH, DEVICE, ENDLESS, HANG, MARK, MEMORY, NOTHING, POISON, SHORT, SLOW

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTY = (str(Path(__file__).with_name("faulty.py")),)
WELL = 0


def picture(fault: int = WELL) -> bytes:
    """An image that asks for a fault. All have one size, so that they may share a batch."""
    pixels = np.random.default_rng(0).integers(0, 250, (96, 128, 3), dtype=np.uint8)
    pixels[0, 0] = (MARK, fault, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Client:
    """Sends many requests to one server at the same time."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits)

    def send(self, fault: int = WELL, **headers: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.http.post("/segment", content=picture(fault), headers=headers))

    async def probes(self) -> tuple[int, int]:
        """What /healthz and /readyz say."""
        return tuple([(await self.http.get(path)).status_code for path in ("/healthz", "/readyz")])

    async def metric(self, name: str, **labels: str) -> float:
        text = (await self.http.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    async def is_well(self) -> bool:
        """Whether both probes are green and both gauges are 1."""
        gauges = [await self.metric(name) for name in ("maskserve_healthy", "maskserve_ready")]
        return await self.probes() == (200, 200) and gauges == [1, 1]

    async def comes_to(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has a value."""
        async with asyncio.timeout(PATIENCE):
            while await self.metric(name, **labels) != value:
                await asyncio.sleep(0.02)

    async def occupied(self) -> asyncio.Task[httpx.Response]:
        """Keep the device busy for half a second, so that the next requests wait together."""
        task = self.send(SLOW)
        async with asyncio.timeout(PATIENCE):
            while not (
                await self.metric("maskserve_queue_requests") == 1
                and await self.metric("maskserve_waiting_requests") == 0
                and await self.metric("maskserve_queue_bytes") == 0
            ):
                await asyncio.sleep(0.01)
        return task


def on(server: Any, scenario: Callable[[Client], Any]) -> Any:
    """Run a scenario against a server."""

    async def run() -> Any:
        client = Client(server.url)
        async with client.http:
            return await scenario(client)

    return asyncio.run(run())


async def statuses(tasks: list[asyncio.Task[httpx.Response]]) -> list[int]:
    return [response.status_code for response in await asyncio.gather(*tasks)]


@pytest.fixture(scope="module")
def faulty(start_for_module: Callable[..., Any]) -> Any:
    """One server for the faults that it survives."""
    return start_for_module(program=FAULTY).wait_until_ready()


# Faults that the service survives


def test_bad_image_in_a_batch_is_a_500_of_its_own_and_does_not_affect_its_neighbours(faulty: Any) -> None:
    async def scenario(client: Client) -> None:
        alone = (await client.send()).json()["instances"]
        failed = await client.metric("maskserve_worker_events_total", event="failed")
        first = await client.occupied()
        tasks = [client.send(POISON if number == 3 else WELL) for number in range(8)]
        found = await asyncio.gather(first, *tasks)
        assert [response.status_code for response in found] == [200, 200, 200, 200, 500, 200, 200, 200, 200]
        assert found[4].json()["type"] == "urn:maskserve:problem:internal"
        assert "poison" not in found[4].text
        assert all(found[number].json()["instances"] == alone for number in (1, 2, 3, 5, 6, 7, 8))
        assert await client.is_well()
        assert await client.metric("maskserve_worker_events_total", event="failed") == failed + 1

    on(faulty, scenario)


@pytest.mark.parametrize(
    ("fault", "metric", "labels"),
    [
        pytest.param(
            SHORT, "maskserve_worker_events_total", {"event": "failed"}, id="the worker's own code raises"
        ),
        pytest.param(
            NOTHING, "maskserve_requests_total", {"reason": "internal"}, id="what cannot be encoded"
        ),
    ],
)
def test_what_goes_wrong_around_the_engine_is_a_500_of_its_own(
    faulty: Any, fault: int, metric: str, labels: dict[str, str]
) -> None:
    async def scenario(client: Client) -> None:
        before = await client.metric(metric, **labels)
        tasks = [await client.occupied(), client.send(), client.send(fault), client.send()]
        assert await statuses(tasks) == [200, 200, 500, 200]
        assert await client.metric(metric, **labels) == before + 1
        assert await client.is_well()

    on(faulty, scenario)


def test_out_of_memory_halves_the_batches_and_every_request_is_answered(faulty: Any) -> None:
    async def scenario(client: Client) -> None:
        before = await client.metric("maskserve_worker_events_total", event="out-of-memory")
        first = await client.occupied()
        assert await statuses([first, *(client.send(MEMORY) for _ in range(8))]) == [200] * 9
        assert await client.metric("maskserve_worker_events_total", event="out-of-memory") > before
        assert await client.metric("maskserve_batch_limit_images") < 8
        assert await client.is_well()

    on(faulty, scenario)


def test_a_client_that_leaves_the_queue_frees_its_place_and_its_image_never_runs(faulty: Any) -> None:
    async def scenario(client: Client) -> None:
        ran = await client.metric("maskserve_worker_events_total", event="images")
        dropped = await client.metric("maskserve_dropped_total", reason="cancelled")
        first = await client.occupied()
        leaving = client.send()
        await client.comes_to("maskserve_waiting_requests", 1)
        leaving.cancel()
        await client.comes_to("maskserve_dropped_total", dropped + 1, reason="cancelled")
        await client.comes_to("maskserve_queue_requests", 1)
        assert (await first).status_code == 200
        assert await client.metric("maskserve_worker_events_total", event="images") == ran + 1
        assert await client.is_well()

    on(faulty, scenario)


def test_a_client_that_leaves_while_its_image_runs_does_not_affect_others(faulty: Any) -> None:
    async def scenario(client: Client) -> None:
        before = await client.metric("maskserve_requests_total", reason="client-gone")
        leaving = await client.occupied()
        staying = client.send()
        leaving.cancel()
        assert (await staying).status_code == 200
        await client.comes_to("maskserve_requests_total", before + 1, reason="client-gone")
        assert await client.metric("maskserve_queue_requests") == 0
        assert await client.is_well()

    on(faulty, scenario)


def test_a_deadline_that_passes_in_the_queue_is_a_504_and_the_image_never_runs(faulty: Any) -> None:
    async def scenario(client: Client) -> None:
        ran = await client.metric("maskserve_worker_events_total", event="images")
        first = await client.occupied()
        late = await client.send(**{"X-Request-Timeout-Ms": "100"})
        reason = late.json()["type"].rpartition(":")[2]
        # 429 where the forecast already sees it
        assert (late.status_code, reason) in ((429, "queue-full"), (504, "deadline-exceeded"))
        assert await client.metric("maskserve_requests_total", reason=reason) >= 1
        assert (await first).status_code == 200
        assert await client.metric("maskserve_worker_events_total", event="images") == ran + 1
        assert await client.is_well()

    on(faulty, scenario)


# Faults that end the process


@pytest.mark.parametrize("fault", [DEVICE, DEATH], ids=["fatal device error", "death of the worker"])
def test_a_lost_device_fails_all_requests_and_ends_the_process_for_its_supervisor(
    start: Callable[..., Any], fault: int
) -> None:
    running = start(program=FAULTY).wait_until_ready()

    async def scenario(client: Client) -> list[Any]:
        first = await client.occupied()
        found = await asyncio.gather(
            first, client.send(fault), client.send(), client.send(), return_exceptions=True
        )
        assert found[0].status_code == 200
        for path in ("/healthz", "/readyz"):
            # The process has ended already.
            with suppress(httpx.TransportError):
                assert (await client.http.get(path)).status_code == 503
        return found[1:]

    lost = on(running, scenario)
    assert [response.status_code for response in lost] == [503] * 3
    assert all(response.headers["retry-after"] for response in lost)
    assert running.ended() == 1


def test_a_hang_turns_health_red_fails_waiting_requests_and_then_ends_the_process(
    start: Callable[..., Any],
) -> None:
    running = start(program=FAULTY, heartbeat_timeout=2).wait_until_ready()

    async def scenario(client: Client) -> None:
        hanging = client.send(HANG)
        await client.comes_to("maskserve_queue_requests", 1)
        waiting = client.send()
        assert await client.is_well()
        assert await statuses([hanging, waiting]) == [503, 503]
        assert await client.probes() == (503, 503)
        assert await client.metric("maskserve_healthy") == 0
        assert (await client.send()).status_code == 503

    on(running, scenario)
    assert running.ended() == 1


def test_sigterm_under_load_loses_nothing_that_was_accepted(start: Callable[..., Any]) -> None:
    running = start(program=FAULTY, drain_delay=1).wait_until_ready()

    async def scenario(client: Client) -> None:
        accepted = [await client.occupied(), *(client.send() for _ in range(6))]
        await client.comes_to("maskserve_queue_requests", 7)
        running.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            while await client.probes() != (200, 503):
                await asyncio.sleep(0.01)
        assert await client.metric("maskserve_ready") == 0
        assert await client.metric("maskserve_healthy") == 1
        # The gateway has not noticed yet.
        accepted.append(client.send())
        assert await statuses(accepted) == [200] * 8

    on(running, scenario)
    assert running.ended() == 0


def test_a_second_signal_ends_at_once(start: Callable[..., Any]) -> None:
    running = start(program=FAULTY, drain_delay=600).wait_until_ready()
    running.process.send_signal(signal.SIGTERM)
    # Signals that are pending together are one, so the first must have been handled.
    while httpx.get(f"{running.url}/readyz").status_code == 200:
        assert running.process.poll() is None
    running.process.send_signal(signal.SIGTERM)
    running.wait_for(re.compile("a second signal has ended the process"))
    assert running.process.wait(20) == 0
    assert not any("Traceback" in line or "ERROR" in line for line in running.log)


def test_what_is_inside_torch_when_the_process_ends_does_not_abort_it(start: Callable[..., Any]) -> None:
    # Of the interpreter's own end, which a fork does not have.
    busy = start(program=FAULTY, forked=False, drain_timeout=1).wait_until_ready()

    async def scenario(client: Client) -> None:
        answer = client.send(ENDLESS)
        await client.comes_to("maskserve_queue_requests", 1)
        busy.process.send_signal(signal.SIGTERM)
        late = await answer
        assert (late.status_code, late.json()["type"]) == (503, "urn:maskserve:problem:draining")
        assert late.headers["retry-after"] == "1"

    on(busy, scenario)
    assert busy.ended() == 0
    loading = start(program=(*FAULTY, "endless-load"), forked=False)
    loading.wait_for(re.compile("computing"))
    loading.process.send_signal(signal.SIGTERM)
    assert loading.ended() == 0


def test_sigkill_under_load_breaks_connections_and_the_next_process_serves(start: Callable[..., Any]) -> None:
    running = start(program=FAULTY).wait_until_ready()

    async def scenario(client: Client) -> list[Any]:
        tasks = [await client.occupied(), client.send()]
        running.process.kill()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(httpx.TransportError):
            await client.probes()
        return ended

    assert all(isinstance(answer, httpx.TransportError) for answer in on(running, scenario))
    assert running.ended() == -signal.SIGKILL
    again = start(program=FAULTY, port=urlsplit(running.url).port).wait_until_ready()
    assert on(again, lambda client: client.send()).status_code == 200


# Resources that run out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_for_the_log_costs_no_answer(model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            cwd=ROOT,
            env=environment(port=port, model=model_file),
            stderr=full,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            for _ in range(PATIENCE * 10):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None
                time.sleep(0.1)
            assert client.post("/segment", content=picture()).status_code == 200
            assert client.post("/segment", content=b"no image").status_code == 415
            assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
            assert 'maskserve_worker_events_total{event="images"} 1.0' in client.get("/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_connections_beyond_the_file_descriptors_keep_no_client_out(start: Callable[..., Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Its imports leave the time to limit it before it looks.
    running = start(program=FAULTY, forked=False)
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (96, 96))
    running.wait_for(re.compile(r"only (\d+) connections at once"))
    running.wait_until_ready()
    address = urlsplit(running.url)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(running.url + path, timeout=60).status_code == 200
        assert httpx.post(f"{running.url}/segment", content=picture(), timeout=60).status_code == 200
    running.process.terminate()
    assert running.ended() == 0
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_when_every_connection_has_a_request_the_next_is_told_to_retry(start: Callable[..., Any]) -> None:
    running = start(program=FAULTY, max_connections=3).wait_until_ready()

    async def scenario(client: Client) -> list[int]:
        tasks = [await client.occupied(), *(client.send(SLOW) for _ in range(2))]
        # The connection that asked for the metrics is the third, and idle: it makes room.
        await asyncio.sleep(0.2)
        return sorted(await statuses([*tasks, client.send()]))

    assert on(running, scenario) == [200, 200, 200, 429]


# Headers


@pytest.fixture(scope="module")
def impatient(start_for_module: Callable[..., Any]) -> Any:
    return start_for_module(header_timeout=0.3).wait_until_ready()


def send_raw(url: str, sent: bytes) -> bytes:
    """All that comes back until the server closes."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as wire:
        wire.sendall(sent)
        return b"".join(iter(lambda: wire.recv(65536), b""))


def test_a_header_that_does_not_arrive_is_408(impatient: Any) -> None:
    answer = send_raw(impatient.url, b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"urn:maskserve:problem:header-too-slow" in answer


def test_a_connection_that_says_nothing_is_closed_without_a_word(impatient: Any) -> None:
    assert send_raw(impatient.url, b"") == b""


def test_a_second_header_on_the_connection_has_its_time_too(impatient: Any) -> None:
    answer = send_raw(impatient.url, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /he")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 408" in answer


@pytest.mark.parametrize(
    "endless",
    [b"GET /" + b"a" * 300_000, b"GET / HTTP/1.1\r\n" + b"X-Filler: nothing\r\n" * 20_000],
    ids=["request line", "headers"],
)
def test_a_header_without_end_is_431(impatient: Any, endless: bytes) -> None:
    answer = send_raw_until_refused(impatient.url, endless)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"urn:maskserve:problem:header-too-large" in answer


def send_raw_until_refused(url: str, sent: bytes) -> bytes:
    """The same, for a server that stops reading: what it sent before that is returned."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as wire:
        received = b""
        try:
            for start in range(0, len(sent), 16384):
                wire.sendall(sent[start : start + 16384])
                time.sleep(0.005)
        except OSError:
            pass
        try:
            while chunk := wire.recv(65536):
                received += chunk
        except OSError:
            pass
        return received
