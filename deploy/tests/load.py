"""Clients of the gateway, each at an address of its own: a steady load, and as many requests at once as one likes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE = 150.0  # seconds that a client waits for its answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as its client saw it."""

    id: str  # the request's, as sent
    result: str  # the status, or the name of the error where there was no answer
    seconds: float
    problem: str = ""  # the type in a problem document
    retry_after: str = ""
    ended: float = 0.0  # by time.monotonic(), where there was an answer


@dataclass
class Outcomes:
    """What became of the requests of one stretch of time."""

    all: list[Outcome] = field(default_factory=list)

    def failed(self) -> list[Outcome]:
        """Those without a 200."""
        return [outcome for outcome in self.all if outcome.result != "200"]

    def counts(self) -> Counter[str]:
        """Requests by result."""
        return Counter(outcome.result for outcome in self.all)

    def __str__(self) -> str:
        seconds = sorted(outcome.seconds for outcome in self.all)
        cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
        results = ", ".join(f"{count} × {result}" for result, count in sorted(self.counts().items()))
        return (
            f"{len(self.all)} requests: {results}; {len(self.failed())} failed; "
            f"p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, slowest {seconds[-1]:.2f} s"
        )


class Client:
    """One client, at 127.0.1.NUMBER, so that the gateway's limit per client sees it as one of many."""

    def __init__(self, url: str, number: int, image: bytes, headers: dict[str, str] | None = None) -> None:
        """headers: that every request has."""
        self.image = image
        self.http = httpx.AsyncClient(
            base_url=url,
            timeout=PATIENCE,
            headers=headers,
            transport=httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number}"),
        )
        self.number = number
        self.sent = 0

    async def ask(self, tag: str, other: bytes | None = None) -> Outcome:
        """Post the image once.

        tag: for the request's id, by which the gateway's log finds it. other: an image in its place.
        """
        self.sent += 1
        name = f"{tag}-{self.number}-{self.sent}"
        started = time.monotonic()
        try:
            headers = {"X-Request-ID": name}
            response = await self.http.post("/segment", content=other or self.image, headers=headers)
        except httpx.HTTPError as error:
            return Outcome(name, type(error).__name__, time.monotonic() - started)
        ended = time.monotonic()
        seconds = ended - started
        if response.status_code == 200:
            assert response.headers["X-Request-ID"] == name
            assert other or response.json()["instances"], "an answer without instances"
            return Outcome(name, "200", seconds, ended=ended)
        problem = (
            response.json().get("type", "") if "problem+json" in response.headers["content-type"] else ""
        )
        retry_after = response.headers.get("Retry-After", "")
        return Outcome(name, str(response.status_code), seconds, problem, retry_after, ended)


@asynccontextmanager
async def clients(
    url: str, count: int, image: bytes, headers: dict[str, str] | None = None
) -> AsyncIterator[list[Client]]:
    """Clients that share nothing; their connections end with the block. headers: that every request has."""
    made = [Client(url, number, image, headers) for number in range(1, count + 1)]
    try:
        yield made
    finally:
        await asyncio.gather(*(client.http.aclose() for client in made))


@asynccontextmanager
async def steady(made: list[Client], rate: float, tag: str) -> AsyncIterator[Outcomes]:
    """So many requests a second, whatever becomes of them, while the block runs; at its end all have an end."""
    outcomes = Outcomes()
    requests: set[asyncio.Task[None]] = set()

    async def one(client: Client) -> None:
        outcomes.all.append(await client.ask(tag))

    async def send() -> None:
        started = time.monotonic()
        number = 0
        while True:
            task = asyncio.ensure_future(one(made[number % len(made)]))
            requests.add(task)
            number += 1
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))

    sender = asyncio.ensure_future(send())
    try:
        yield outcomes
    finally:
        sender.cancel()
        await asyncio.gather(*requests)


async def saturate(
    made: list[Client], seconds: float, tag: str, pause: float = 0.0
) -> tuple[Outcomes, float]:
    """Every client asks again as soon as it is answered; what became of it, and answered requests a second.

    Args:
        made: the clients.
        seconds: for which they ask.
        tag: that the ids of their requests begin with.
        pause: seconds that a client waits after a refusal.
    """
    outcomes = Outcomes()
    started = time.monotonic()

    async def keep_asking(client: Client) -> None:
        while time.monotonic() < started + seconds:
            outcomes.all.append(outcome := await client.ask(tag))
            await asyncio.sleep(0 if outcome.result == "200" else pause)

    await asyncio.gather(*map(keep_asking, made))
    return outcomes, outcomes.counts()["200"] / (time.monotonic() - started)


async def flood(url: str, path: str, *, connections: int, each: int) -> str:
    """All that is answered to so many GETs, each connection's sent in one piece: faster than any client library."""
    address = urlsplit(url)
    request = f"GET {path} HTTP/1.1\r\nHost: gateway\r\n"
    sent = (f"{request}\r\n" * (each - 1) + f"{request}Connection: close\r\n\r\n").encode()

    async def one() -> str:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(sent)
        answered = await reader.read()
        writer.close()
        return answered.decode()

    return "".join(await asyncio.gather(*(one() for _ in range(connections))))
