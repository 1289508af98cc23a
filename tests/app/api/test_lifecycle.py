"""Probes while the model loads, fails to load, and drains."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

import httpx

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import PATIENCE, PHOTO, FakeEngine, serving, until

if TYPE_CHECKING:
    import pytest


def test_while_the_model_loads_probes_answer_and_requests_get_503() -> None:
    loading = threading.Event()

    def load() -> FakeEngine:
        loading.wait(PATIENCE)
        return FakeEngine()

    async def run() -> dict[str, httpx.Response]:
        app = create_app(Settings(), load)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://maskserve") as client,
        ):
            answers = {
                path: await client.get(path) for path in ("/healthz", "/livez", "/readyz", "/model", "/")
            }
            answers["/segment"] = await client.post("/segment", content=PHOTO)
            loading.set()
            await app.state.service.ready.wait()
            answers["ready"] = await client.get("/readyz")
            return answers

    answers = asyncio.run(run())
    assert {path: answer.status_code for path, answer in answers.items()} == {
        "/healthz": 200,
        "/livez": 200,
        "/readyz": 503,
        "/model": 503,
        "/": 200,
        "/segment": 503,
        "ready": 200,
    }
    for path in ("/readyz", "/model", "/segment"):
        assert answers[path].json()["type"] == "urn:maskserve:problem:not-ready"
        assert int(answers[path].headers["retry-after"]) >= 1


def test_a_model_that_cannot_be_loaded_ends_the_service_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from model.zoo.model_file import ModelError

    def load() -> FakeEngine:
        raise ModelError("m.safetensors: there is no such file")

    async def run() -> tuple[list[str], list[int]]:
        ended = asyncio.Event()
        calls: list[str] = []
        app = create_app(Settings(model="m.safetensors"), load, lambda: (calls.append("end"), ended.set()))
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://maskserve") as client,
            asyncio.timeout(PATIENCE),
        ):
            await ended.wait()
            return calls, [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]

    calls, statuses = asyncio.run(run())
    assert calls == ["end"]
    assert statuses == [503, 503]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "m.safetensors: there is no such file" in record.getMessage()
    assert not record.exc_info


def test_a_failed_warm_up_ends_the_service() -> None:
    class Cold(FakeEngine):
        def warm_up(self) -> None:
            raise RuntimeError("no kernel image is available")

    async def run() -> list[int]:
        ended = asyncio.Event()
        app = create_app(Settings(), Cold, ended.set)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://maskserve") as client,
            asyncio.timeout(PATIENCE),
        ):
            await ended.wait()
            return [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]

    assert asyncio.run(run()) == [503, 503]


def test_while_draining_accepted_work_is_finished_and_new_work_refused() -> None:
    async def run() -> tuple[httpx.Response, httpx.Response, httpx.Response, httpx.Response]:
        release = threading.Event()
        async with serving(FakeEngine(lambda: release.wait(PATIENCE))) as (client, app):
            service = app.state.service
            accepted = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: service.admission.requests == 1)
            drained = asyncio.ensure_future(service.drain())
            await asyncio.sleep(0)
            refused = await client.post("/segment", content=PHOTO)
            ready, healthy = await client.get("/readyz"), await client.get("/healthz")
            assert not drained.done()
            release.set()
            await drained
            return await accepted, refused, ready, healthy

    accepted, refused, ready, healthy = asyncio.run(run())
    assert accepted.status_code == 200
    assert (refused.status_code, ready.status_code, healthy.status_code) == (503, 503, 200)
    assert refused.json()["type"] == ready.json()["type"] == "urn:maskserve:problem:draining"
    assert "retry-after" in refused.headers
