"""Deadlines, API keys, images by URL, a device that hangs, logs and metrics of a service with a fake engine."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.query import MAX_TIMEOUT_MS, TIMEOUT_HEADER
from app.keys import hash_key
from app.observability.logs import FIELDS
from app.service import WATCH_SECONDS
from tests.app.fakes import PATIENCE, PHOTO, FakeEngine, ask, picture, serving, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from app.batching.worker import Worker

KEY = "a-key-of-no-consequence"


def readings(response: httpx.Response) -> dict[str, float]:
    """Every sample of /metrics by its name and labels, these in the order of the alphabet."""
    return {
        sample.name + (str(dict(sorted(sample.labels.items()))) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


class Blocked:
    """A fake engine that answers only once `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.engine = FakeEngine(lambda: self.release.wait(PATIENCE))


class FastClock:
    """Sets a worker's clock `seconds` ahead of the real one."""

    def __init__(self, worker: Worker) -> None:
        self.seconds, self.real = 0.0, worker._clock
        for part in (worker, *worker._lanes):
            part._clock = lambda: self.real() + self.seconds


# Deadlines


def test_a_client_that_waits_for_less_than_the_setting_is_answered_by_then() -> None:
    held = Blocked()

    async def run() -> httpx.Response:
        async with serving(held.engine) as (client, app):
            answer = await client.post("/segment", content=PHOTO, headers={"X-Request-Timeout-Ms": "50"})
            assert app.state.service.admission.requests == 0
            held.release.set()
            return answer

    response = asyncio.run(run())
    assert response.status_code == 504
    assert response.json()["type"] == "urn:maskserve:problem:deadline-exceeded"


def test_no_client_can_wait_for_longer_than_the_setting() -> None:
    held = Blocked()

    async def run() -> httpx.Response:
        async with serving(held.engine, request_timeout=0.05) as (client, _):
            answer = await client.post("/segment", content=PHOTO, headers={"X-Request-Timeout-Ms": "60000"})
            held.release.set()
            return answer

    assert asyncio.run(run()).status_code == 504


@pytest.mark.parametrize("given", ["0", "-5", "1.5", "soon", "", "1000000000", "1" * 20])
def test_an_invalid_time_limit_is_refused(given: str) -> None:
    response = ask("POST", "/segment", content=PHOTO, headers={"X-Request-Timeout-Ms": given})
    assert response.status_code == 422
    says = f'must be a whole number of milliseconds from 1 to 999999999, not "{given}".'
    assert says in response.json()["detail"]


@pytest.mark.parametrize("given", ["1", "999999999", "00000000060000"])
def test_the_bounds_of_a_time_limit_are_those_that_its_refusal_and_the_document_state(given: str) -> None:
    response = ask("POST", "/segment", content=PHOTO, headers={TIMEOUT_HEADER: given})
    assert response.status_code in (200, 504)
    document = ask("GET", "/openapi.json").json()
    (parameter,) = [
        p for p in document["paths"]["/segment"]["post"]["parameters"] if p["name"] == TIMEOUT_HEADER
    ]
    assert (parameter["schema"]["minimum"], parameter["schema"]["maximum"]) == (1, MAX_TIMEOUT_MS)


def test_a_request_that_would_be_answered_too_late_is_refused_at_once() -> None:
    held = Blocked()

    async def run() -> tuple[httpx.Response, float]:
        async with serving(held.engine) as (client, app):
            admission = app.state.service.admission
            # Ten seconds for one picture, which the network gets as 64 × 32 pixels.
            admission.record_served(pixels=64 * 32, seconds=10.0)
            first = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: admission.requests == 1)
            refused = await client.post("/segment", content=PHOTO, headers={"X-Request-Timeout-Ms": "15000"})
            held.release.set()
            assert (await first).status_code == 200
            return refused, readings(await client.get("/metrics"))[
                "maskserve_shed_total{'reason': 'deadline'}"
            ]

    refused, shed = asyncio.run(run())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) == 10
    assert shed == 1


def test_uploads_beyond_their_common_memory_are_refused_and_leave_no_trace() -> None:
    async def run() -> tuple[int, int, int]:
        async with serving(max_upload_bytes=1024, max_queue_bytes=2048) as (client, app):
            service = app.state.service
            with service.admission.count_body() as other:
                other.add(2048 - len(PHOTO) + 1)
                refused = await client.post("/segment", content=PHOTO)
                held = service.admission.bytes
            answered = await client.post("/segment", content=PHOTO)
            assert service.admission.bytes == 0
            return refused.status_code, answered.status_code, held - (2048 - len(PHOTO) + 1)

    assert asyncio.run(run()) == (429, 200, 0)


# Keys


@pytest.fixture
def keyed(tmp_path: Path) -> dict[str, Any]:
    """The setting that asks for one key."""
    path = tmp_path / "keys"
    path.write_text(f"{hash_key(KEY).hex()} phone app\n", encoding="utf-8")
    return {"api_keys_file": path}


@pytest.mark.parametrize(("method", "path"), [("POST", "/segment"), ("GET", "/model"), ("GET", "/metrics")])
def test_without_a_key_nothing_is_revealed_and_no_body_is_read(
    method: str, path: str, keyed: dict[str, Any]
) -> None:
    response = ask(method, path, settings=keyed)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["type"] == "urn:maskserve:problem:unauthorized"


@pytest.mark.parametrize(("method", "path"), [("POST", "/segment"), ("GET", "/model"), ("GET", "/metrics")])
def test_a_key_gives_access_to_every_route(method: str, path: str, keyed: dict[str, Any]) -> None:
    content = PHOTO if method == "POST" else None
    headers = {"authorization": f"Bearer {KEY}"}
    assert ask(method, path, settings=keyed, content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/", "/docs", "/openapi.json"])
def test_probes_and_pages_need_no_key(path: str, keyed: dict[str, Any]) -> None:
    assert ask("GET", path, settings=keyed).status_code == 200


def test_the_log_names_the_keys_owner_and_never_the_key(
    keyed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"authorization": f"Bearer {KEY}"}
    ask("POST", "/segment", settings=keyed, content=PHOTO, headers=headers)
    (line,) = [getattr(record, FIELDS) for record in caplog.records if hasattr(record, FIELDS)]
    assert line["client"] == "phone app"
    assert KEY not in caplog.text + str([vars(record) for record in caplog.records])


# Images by URL


def test_urls_are_not_fetched_unless_hosts_are_named() -> None:
    response = ask("POST", "/segment", json={"url": "https://photos.example.com/a.jpg"})
    assert response.status_code == 400
    assert "Addresses are not fetched here" in response.json()["detail"]


def test_an_image_is_fetched_from_a_named_host_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> httpx.Response:
        async with serving(url_hosts="photos.example.com") as (client, app):
            fetched: list[str] = []

            async def get(url: str, arrived: Callable[[int], None]) -> bytes:
                fetched.append(url)
                arrived(len(PHOTO))
                return PHOTO

            monkeypatch.setattr(app.state.service.fetcher, "get", get)
            answer = await client.post("/segment", json={"url": "https://photos.example.com/a.jpg"})
            assert fetched == ["https://photos.example.com/a.jpg"]
            assert app.state.service.admission.bytes == 0
            return answer

    response = asyncio.run(run())
    assert response.json()["image"] == {"width": 40, "height": 30}
    assert "fetch;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize(
    "url", ["http://photos.example.com/a.jpg", "https://other.example.com/a.jpg", "https://169.254.169.254/"]
)
def test_other_urls_are_refused(url: str) -> None:
    response = ask("POST", "/segment", json={"url": url}, settings={"url_hosts": "photos.example.com"})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:maskserve:problem:unusable-url"


# Life cycle


def test_a_worker_without_a_thread_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Worker) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("app.batching.worker.Worker.start", start)
    ended: list[int] = []

    async def run() -> None:
        async with serving(on_failure=lambda: ended.append(1), wait=False) as (client, _):
            await until(lambda: bool(ended))
            assert (await client.get("/healthz")).status_code == 503

    asyncio.run(run())


def test_a_hanging_device_turns_probes_red_fails_waiting_requests_and_ends_the_process() -> None:
    held, ended = Blocked(), []

    async def run() -> None:
        async with serving(held.engine, on_failure=lambda: ended.append(1), heartbeat_timeout=100) as (
            client,
            app,
        ):
            service = app.state.service
            clock = FastClock(service.worker)
            waiting = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: service.worker.status().activity == "forward")
            service.check_heartbeat()
            assert (await client.get("/healthz")).status_code == 200

            clock.seconds = 101.0
            service.check_heartbeat()
            assert (await waiting).status_code == 503
            for path in ("/healthz", "/readyz"):
                assert (await client.get(path)).status_code == 503
            refused = await client.post("/segment", content=PHOTO)
            assert refused.status_code == 503
            assert "does not respond" in refused.json()["detail"]
            assert readings(await client.get("/metrics"))["maskserve_healthy"] == 0
            assert ended == []

            clock.seconds = 201.0
            service.check_heartbeat()
            assert ended == [1]
            held.release.set()

    asyncio.run(run())


def test_a_device_that_responds_again_turns_the_probes_green() -> None:
    held = Blocked()

    async def run() -> None:
        # The time limit is on the real clock, beside which the worker's runs ahead.
        async with serving(held.engine, heartbeat_timeout=100, request_timeout=3600) as (client, app):
            service = app.state.service
            clock = FastClock(service.worker)
            waiting = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: service.worker.status().activity == "forward")
            clock.seconds = 150.0
            service.check_heartbeat()
            assert (await waiting).status_code == 503
            held.release.set()
            await until(lambda: service.worker.status().activity == "idle")
            service.check_heartbeat()
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.post("/segment", content=PHOTO)).status_code == 200

    asyncio.run(run())


def test_the_heartbeat_is_checked_regularly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WATCH_SECONDS <= 5
    monkeypatch.setattr("app.service.WATCH_SECONDS", 0)

    async def run() -> None:
        async with serving() as (_, app):
            looked: list[int] = []
            monkeypatch.setattr(app.state.service, "check_heartbeat", lambda: looked.append(1))
            await until(lambda: len(looked) >= 2)

    asyncio.run(run())


def test_before_it_drains_the_service_is_not_ready_but_still_answers() -> None:
    async def run() -> None:
        async with serving(drain_delay=3600) as (client, app):
            leaving = asyncio.ensure_future(app.state.service.begin_shutdown())
            await until(lambda: app.state.service.shutting_down)
            readiness = await client.get("/readyz")
            assert readiness.status_code == 503
            assert readiness.json()["type"] == "urn:maskserve:problem:draining"
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.post("/segment", content=PHOTO)).status_code == 200
            leaving.cancel()

    asyncio.run(run())


# Logs and metrics


def test_a_requests_line_has_its_stages_size_batch_and_instances(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "the-id", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    response = ask("POST", "/segment", content=PHOTO, headers=headers)
    (line,) = [getattr(record, FIELDS) for record in caplog.records if hasattr(record, FIELDS)]
    assert set(line.pop("stages_ms")) == {"read", "decode", "queue", "forward", "encode"}
    assert line.pop("ms") > 0
    assert line == {
        "id": "the-id",
        "method": "POST",
        "path": "/segment",
        "status": 200,
        "bytes": len(response.content),
        "reason": "ok",
        "format": "PNG",
        "width": 40,
        "height": 30,
        "batch": 1,
        "instances": 2,
        "trace_id": trace,
    }


def test_what_is_refused_is_counted_and_logged_by_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> dict[str, float]:
        async with serving() as (client, _):
            await client.post("/segment", content=b"no image")
            await client.post("/segment?masks=maybe", content=PHOTO)
            await client.get("/nowhere/at/all")
            await client.put("/model")
            await client.request("BREW", "/segment")
            return readings(await client.get("/metrics"))

    counted = {
        name.removeprefix("maskserve_requests_total"): value
        for name, value in asyncio.run(run()).items()
        if name.startswith("maskserve_requests_total")
    }

    def labels(method: str, path: str, status: str, reason: str) -> str:
        return str({"method": method, "path": path, "reason": reason, "status": status})

    assert counted == {
        labels("POST", "/segment", "415", "unsupported-format"): 1,
        labels("POST", "/segment", "422", "invalid-parameter"): 1,
        labels("GET", "other", "404", "unknown-path"): 1,
        labels("other", "/model", "405", "method-not-allowed"): 1,
        labels("other", "/segment", "405", "method-not-allowed"): 1,
    }
    reasons = [getattr(record, FIELDS)["reason"] for record in caplog.records if hasattr(record, FIELDS)]
    assert reasons[:2] == ["unsupported-format", "invalid-parameter"]


def test_metrics_follow_a_request_from_admission_to_answer() -> None:
    async def run() -> dict[str, float]:
        async with serving(FakeEngine()) as (client, _):
            await client.post("/segment", content=picture("PNG", 64, 40))
            return readings(await client.get("/metrics"))

    found = asyncio.run(run())
    for stage in ("read", "decode", "queue", "forward", "encode", "total"):
        assert found[f"maskserve_stage_seconds_count{{'stage': '{stage}'}}"] == 1
        assert found[f"maskserve_stage_seconds_bucket{{'le': '120.0', 'stage': '{stage}'}}"] == 1
    assert found["maskserve_batch_images_count"] == found["maskserve_batch_images_sum"] == 1
    assert found["maskserve_instances_sum"] == 2
    assert found["maskserve_response_bytes_count"] == 1
    assert found["maskserve_input_pixels_total{'kind': 'image'}"] == 64 * 40
    assert found["maskserve_input_pixels_total{'kind': 'padding'}"] == 64 * 24
    assert found["maskserve_ready"] == found["maskserve_healthy"] == 1
    assert found["maskserve_queue_requests"] == found["maskserve_queue_bytes"] == 0
    assert found["maskserve_queue_requests_limit"] == 256
    assert found["maskserve_worker_events_total{'event': 'images'}"] == 1
    assert any("model_info" in name and "'model': 'fake'" in name for name in found)
    assert found["process_resident_memory_bytes"] > 0


def test_metrics_are_available_while_the_model_loads() -> None:
    async def run() -> dict[str, float]:
        loading = threading.Event()

        def load() -> FakeEngine:
            loading.wait(PATIENCE)
            return FakeEngine()

        async with serving(load=load, wait=False) as (client, _):
            found = readings(await client.get("/metrics"))
            loading.set()
            return found

    assert asyncio.run(run())["maskserve_ready"] == 0
