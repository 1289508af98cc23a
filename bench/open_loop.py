"""Open loops: requests arrive by a Poisson process, whatever becomes of those before. wrk has only closed ones."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.tests.processes import Replica


@dataclass
class OpenLoop:
    """What became of the requests of one open loop."""

    # of the closed loop's peak
    factor: float
    # requests a second
    offered: float
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    # by status, seconds
    latencies: dict[str, list[float]] = field(default_factory=dict)
    # bytes of the server, twice a second
    resident: list[int] = field(default_factory=list)

    def add(self, status: str, seconds: float) -> None:
        self.statuses[status] += 1
        self.latencies.setdefault(status, []).append(seconds)

    def rate(self, status: str = "200") -> float:
        return self.statuses[status] / self.seconds

    def percentile(self, part: float, status: str = "200") -> float:
        values = sorted(self.latencies.get(status, [float("nan")]))
        return values[min(len(values) - 1, int(part * len(values)))]

    def line(self) -> str:
        others = {status: n for status, n in sorted(self.statuses.items()) if status not in ("200", "429")}
        memory = f"{min(self.resident) >> 20}–{max(self.resident) >> 20} MiB" if self.resident else "–"
        return (
            f"{f'open loop, {self.factor:g} × the peak':<28}{self.offered:>8.1f}{self.rate():>9.2f}"
            f"{self.rate('429'):>9.1f}{1000 * self.percentile(0.5):>10.0f}{1000 * self.percentile(0.99):>10.0f}"
            f"{1000 * self.percentile(0.99, '429'):>12.1f}  {memory:<18}{others or ''}"
        )


class Connection:
    """HTTP/1.1 in its plainest form, because an HTTP library would take more of the processor than the service."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> str:
        """The status of the answer, which is read to its end."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        assert self.reader is not None
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "") == "close":
            self.close()
        return first.split()[1]

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


class Load:
    """Requests to one server, which arrive whatever becomes of those before."""

    def __init__(self, replica: Replica, images: list[bytes], seed: int) -> None:
        self.replica, self.images = replica, images
        self.requests = [self.request(image) for image in images]
        self.random = random.Random(seed)
        self.idle: list[Connection] = []

    @staticmethod
    def request(image: bytes) -> bytes:
        head = (
            "POST /segment HTTP/1.1\r\nHost: maskserve\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(image)}\r\n\r\n"
        )
        return head.encode() + image

    async def one(self, tally: OpenLoop, request: bytes) -> None:
        """One request over a connection that is free, or a new one."""
        connection = self.idle.pop() if self.idle else Connection("127.0.0.1", self.replica.port)
        started = time.perf_counter()
        try:
            status = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError) as error:
            connection.close()
            tally.add(type(error).__name__, time.perf_counter() - started)
            return
        tally.add(status, time.perf_counter() - started)
        self.idle.append(connection)

    async def leave(self, request: bytes) -> None:
        """Send everything and hang up without waiting for the answer."""
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.replica.port)
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(self.random.random() * 0.2)
            writer.transport.abort()

    async def slow(self, tally: OpenLoop, until: float) -> None:
        """Send a body of a few bytes a second, again and again."""
        while time.perf_counter() < until:
            with suppress(OSError, asyncio.IncompleteReadError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.replica.port)
                request = self.requests[0]
                for start in range(0, len(request), 100):
                    if time.perf_counter() >= until:
                        break
                    writer.write(request[start : start + 100])
                    await asyncio.sleep(0.5)
                writer.transport.abort()
                tally.statuses["slow client"] += 1

    async def watch(self, tally: OpenLoop) -> None:
        while True:
            tally.resident.append(resident_bytes(self.replica))
            await asyncio.sleep(0.5)

    async def open(
        self, rate: float, seconds: float, *, factor: float, disconnects: float, slow: int
    ) -> OpenLoop:
        """Poisson arrivals."""
        tally = OpenLoop(factor, rate)
        started = time.perf_counter()
        watch = asyncio.ensure_future(self.watch(tally))
        tasks = {asyncio.ensure_future(self.slow(tally, started + seconds)) for _ in range(slow)}
        due = started
        while due < started + seconds:
            due += self.random.expovariate(rate)
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            request = self.random.choice(self.requests)
            if self.random.random() < disconnects:
                tally.statuses["left"] += 1
                task = asyncio.ensure_future(self.leave(request))
            else:
                task = asyncio.ensure_future(self.one(tally, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        arrived = time.perf_counter() - started
        answered = tally.statuses["200"]
        await asyncio.gather(*tasks)
        # What was answered after the last arrival counts with the time that it took; a rate needs both.
        tally.seconds = time.perf_counter() - started if answered < tally.statuses["200"] else arrived
        watch.cancel()
        return tally


def resident_bytes(replica: Replica) -> int:
    """Memory that the service occupies."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{replica.running.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
