"""Full queues, deadlines, slow bodies, and clients that disconnect."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from app.api.query import TIMEOUT_HEADER
from app.http.request_context import Timings
from tests.app.fakes import PATIENCE, PHOTO, FakeEngine, Scripted, request_event, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx


def test_a_full_queue_is_429_with_retry_after_at_once() -> None:
    async def run() -> tuple[httpx.Response, httpx.Response]:
        release = threading.Event()
        async with serving(FakeEngine(lambda: release.wait(PATIENCE)), max_queue_requests=1) as (client, app):
            first = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: app.state.service.admission.requests == 1)
            refused = await client.post("/segment", content=PHOTO)
            release.set()
            return await first, refused

    first, refused = asyncio.run(run())
    assert first.status_code == 200
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:maskserve:problem:queue-full"
    assert int(refused.headers["retry-after"]) == refused.json()["retry_after"] >= 1


def test_overload_is_refused_before_routing_with_a_complete_problem() -> None:
    async def run() -> tuple[httpx.Response, httpx.Response, str]:
        async with serving(max_queue_requests=1) as (client, app):
            with app.state.service.admission.admit(1):
                refused = await client.post("/segment?score_threshold=much", headers={"X-Request-ID": "mine"})
                other = await client.get("/segment")  # what asks for no instances is answered all the same
            return refused, other, (await client.get("/metrics")).text

    refused, other, metrics = asyncio.run(run())
    assert (refused.status_code, other.status_code) == (429, 405)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"] == refused.json()["request_id"] == "mine"
    assert 'reason="queue-full"' in metrics


def test_an_answer_that_takes_too_long_is_504() -> None:
    release = threading.Event()

    async def run() -> httpx.Response:
        async with serving(FakeEngine(lambda: release.wait(PATIENCE)), request_timeout=0.05) as (client, app):
            response = await client.post("/segment", content=PHOTO)
            assert app.state.service.admission.requests == 0
            release.set()
            return response

    response = asyncio.run(run())
    assert response.status_code == 504
    assert response.json()["type"] == "urn:maskserve:problem:deadline-exceeded"


def test_a_slow_body_is_408() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PHOTO[:10]
        await asyncio.Event().wait()

    async def run() -> httpx.Response:
        async with serving(body_timeout=0.05) as (client, _):
            return await client.post("/segment", content=body(), headers={"content-type": "image/png"})

    response = asyncio.run(run())
    assert response.status_code == 408
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_the_clients_time_limit_bounds_the_reading_of_the_body(accept: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PHOTO[:10]
        await asyncio.Event().wait()

    async def run() -> tuple[httpx.Response, int]:
        async with serving() as (client, app):
            headers = {"content-type": "image/png", "accept": accept, TIMEOUT_HEADER: "50"}
            response = await client.post("/segment", content=body(), headers=headers)
            return response, app.state.service.admission.bytes

    response, held = asyncio.run(run())
    assert response.status_code == 504
    # Of the 50 milliseconds a busy machine may leave none.
    assert response.json()["detail"].startswith("The body did not arrive within 0")
    assert held == 0


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_the_clients_time_limit_bounds_the_fetching_of_an_address(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def run() -> httpx.Response:
        async with serving(url_hosts="photos.example.com") as (client, app):
            monkeypatch.setattr(app.state.service.fetcher, "get", get)
            return await client.post(
                "/segment",
                json={"url": "https://photos.example.com/a.jpg"},
                headers={"accept": accept, TIMEOUT_HEADER: "50"},
            )

    problem = asyncio.run(run()).json()
    assert problem["status"] == 504
    # Of the 50 milliseconds a busy machine may leave none.
    assert problem["detail"].startswith("The image did not arrive from its address within 0")


def test_reading_the_body_shortens_the_time_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timings, "total", lambda _: 0.25)
    release = threading.Event()

    async def run() -> httpx.Response:
        async with serving(FakeEngine(lambda: release.wait(PATIENCE))) as (client, _):
            response = await client.post("/segment", content=PHOTO, headers={TIMEOUT_HEADER: "300"})
            release.set()
            return response

    response = asyncio.run(run())
    assert response.status_code == 504
    assert response.json()["detail"] == "The answer was not ready within 0.05 seconds."


def test_the_image_of_a_disconnected_client_is_never_run() -> None:
    async def run() -> tuple[FakeEngine, int, list[Any]]:
        running, release = threading.Event(), threading.Event()

        def hold() -> None:
            running.set()
            release.wait(PATIENCE)

        engine = FakeEngine(hold)
        async with serving(engine, max_batch_size=1) as (client, app):
            admission = app.state.service.admission
            first = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(running.is_set)  # or the second could overtake it
            second = Scripted(app, [request_event(PHOTO)])
            await until(lambda: app.state.service.worker.waiting[0] == 1)
            second.begin_shutdown()
            await second.run
            left = admission.requests
            release.set()
            assert (await first).status_code == 200
            return engine, left, second.sent

    engine, left, sent = asyncio.run(run())
    assert left == 1  # the first one's
    assert sent == []
    assert engine.images == 1


def test_a_client_that_disconnects_while_sending_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> list[Any]:
        async with serving() as (_, app):
            client = Scripted(app, [request_event(PHOTO[:10], more=True), {"type": "http.disconnect"}])
            await client.run
            return client.sent

    assert asyncio.run(run()) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(" 499 " in record.getMessage() for record in caplog.records)


def test_a_refusal_is_sent_before_the_rest_of_the_body_is_discarded() -> None:
    async def run() -> Scripted:
        async with serving(max_upload_bytes=1024) as (_, app):
            events = [
                request_event(b"x" * 2000, more=True),
                request_event(b"x" * 2000, more=True),
                request_event(b""),
            ]
            client = Scripted(app, events, {"content-type": "image/png", "transfer-encoding": "chunked"})
            await client.run
            return client

    client = asyncio.run(run())
    start, body, end = client.sent
    assert start["status"] == 413
    assert (b"connection", b"close") in [(k.lower(), v) for k, v in start["headers"]]
    assert body["more_body"] is True
    assert orjson.loads(body["body"])["status"] == 413
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}
    assert client.events == []


def test_a_client_that_waits_for_100_continue_is_refused_without_reading() -> None:
    async def run() -> Scripted:
        async with serving(max_upload_bytes=1024) as (_, app):
            headers = {"content-type": "image/png", "content-length": "5000", "expect": "100-continue"}
            client = Scripted(app, [request_event(b"x" * 5000)], headers)
            await client.run
            return client

    client = asyncio.run(run())
    assert client.status == 413
    assert len(client.sent) == 2
    assert len(client.events) == 1  # its body was never asked for
