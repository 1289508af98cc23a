"""Several images in one request: one line each, in the order sent, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.app.fakes import PATIENCE, PHOTO, FakeEngine, fail, picture, png_of, serving, until

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

NDJSON = "application/x-ndjson"


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    """A form's parts, for httpx."""
    return [
        ("image", (f"{number}.png", content, "application/octet-stream"))
        for number, content in enumerate(images)
    ]


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    """The documents of an answer."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NDJSON
    assert response.content.endswith(b"\n")
    return [orjson.loads(line) for line in response.content.splitlines()]


def ask(
    *images: bytes, engine: FakeEngine | None = None, query: str = "", headers: Any = None, **settings: Any
) -> httpx.Response:
    """The answer to one form."""

    async def run() -> httpx.Response:
        async with serving(engine, **settings) as (client, app):
            response = await client.post(f"/segment{query}", files=form(*images), headers=headers)
            assert at_rest(app)
            return response

    return asyncio.run(run())


def at_rest(app: FastAPI) -> bool:
    admission = app.state.service.admission
    return (admission.requests, admission.pixels, admission.bytes) == (0, 0, 0)


def test_each_image_has_the_answer_that_it_gets_alone_in_the_order_sent() -> None:
    images = [picture("PNG", 40 + number, 30) for number in range(20)]

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with serving() as (client, _):
            together = await client.post("/segment?masks=polygon", files=form(*images))
            alone = [await client.post("/segment?masks=polygon", content=image) for image in images]
            return lines(together), [response.json() for response in alone]

    together, alone = asyncio.run(run())
    assert [line.pop("index") for line in together] == list(range(20))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.pop("id")
        del theirs["id"]
        assert ours == theirs


def test_a_bad_image_has_its_problem_and_the_others_their_results() -> None:
    response = ask(PHOTO, b"no image", PHOTO[:-45], b"", png_of(500, 500), PHOTO, max_image_pixels=200_000)
    found = lines(response)
    statuses = [line.get("status", 200) for line in found]
    assert statuses == [200, 415, 422, 415, 413, 200]
    assert [line["index"] for line in found] == list(range(6))
    assert found[1]["type"] == "urn:maskserve:problem:unsupported-format"
    assert all(line["request_id"] == response.headers["x-request-id"] for line in found if "status" in line)


def test_one_image_gets_json_unless_ndjson_is_accepted() -> None:
    assert ask(PHOTO).headers["content-type"] == "application/json"
    (line,) = lines(ask(PHOTO, headers={"accept": NDJSON}))
    assert line["index"] == 0
    assert len(line["instances"]) == 2


def test_a_picture_of_several_images_is_refused() -> None:
    response = ask(PHOTO, PHOTO, headers={"accept": "image/png"})
    assert response.status_code == 400
    assert NDJSON in response.json()["detail"]


@pytest.mark.parametrize(
    ("images", "settings", "says"),
    [
        pytest.param([PHOTO] * 4, {"max_images": 3}, "at most 3 images", id="too many"),
        pytest.param(
            [PHOTO, bytes(2000)], {"max_upload_bytes": 1024}, "at most 1024 bytes", id="one too large"
        ),
        pytest.param(
            [bytes(900)] * 5,
            {"max_upload_bytes": 1024, "max_queue_bytes": 8000},
            "at most 4000 bytes together",
            id="together too large",
        ),
    ],
)
def test_a_form_beyond_its_limits_is_refused_as_a_whole(
    images: list[bytes], settings: dict[str, Any], says: str
) -> None:
    response = ask(*images, **settings)
    assert response.status_code == 413
    assert says in response.json()["detail"]


def test_an_internal_error_of_one_image_is_logged_with_its_index(caplog: pytest.LogCaptureFixture) -> None:
    (first, second) = lines(ask(PHOTO, PHOTO, engine=FakeEngine(fail)))
    assert first["status"] == second["status"] == 500
    assert "secret" not in first["detail"]
    assert "failed on image 0" in caplog.text


def test_a_call_does_not_shed_its_own_images() -> None:
    found = lines(ask(*[PHOTO] * 12, max_queue_requests=2))
    assert [len(line["instances"]) for line in found] == [2] * 12


def test_when_other_requests_fill_the_queue_an_image_is_refused_with_retry_after() -> None:
    release = threading.Event()

    async def run() -> list[dict[str, Any]]:
        engine = FakeEngine(lambda: release.wait(PATIENCE))
        async with serving(engine, max_queue_pixels=2000) as (client, app):
            other = asyncio.ensure_future(client.post("/segment", content=PHOTO))
            await until(lambda: app.state.service.admission.pixels == 1200)
            found = lines(await client.post("/segment", files=form(PHOTO, PHOTO, PHOTO)))
            release.set()
            assert (await other).status_code == 200
            return found

    for refused in asyncio.run(run()):
        assert refused["status"] == 429
        assert refused["retry_after"] >= 1


def test_a_line_is_sent_before_later_images_are_done() -> None:
    """httpx's transport hands over whole bodies, so the application is asked without it."""
    release = threading.Event()
    runs: list[int] = []

    def behave() -> None:
        runs.append(1)
        if len(runs) == 2:
            release.wait(PATIENCE)

    async def run() -> tuple[int, int]:
        async with serving(FakeEngine(behave), max_batch_size=1) as (client, app):
            request = client.build_request("POST", "/segment", files=form(PHOTO, PHOTO))
            sent, leave = await begin(app, request)
            await until(lambda: len(bodies(sent)) == 1)
            before = len(bodies(sent))
            release.set()
            await until(lambda: bool(sent) and sent[-1].get("more_body") is False)
            after = len([body for body in bodies(sent) if body])
            leave()
            return before, after

    assert asyncio.run(run()) == (1, 2)


def test_a_client_that_disconnects_frees_all_images() -> None:
    release = threading.Event()
    engine = FakeEngine(lambda: release.wait(PATIENCE))

    async def run() -> int:
        async with serving(engine, max_batch_size=1) as (client, app):
            request = client.build_request("POST", "/segment", files=form(*[PHOTO] * 10))
            sent, leave = await begin(app, request)
            admission = app.state.service.admission
            await until(lambda: admission.requests == 2)  # twice the batch size are in flight at once
            assert admission.bytes > 0
            leave()
            await until(lambda: at_rest(app))
            release.set()
            assert not bodies(sent)
            return engine.images

    assert asyncio.run(run()) <= 1


def bodies(sent: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


async def begin(app: FastAPI, request: httpx.Request) -> tuple[list[dict[str, Any]], Any]:
    """Start an exchange; what has been sent so far, and a function that ends the connection."""
    disconnected = asyncio.Event()
    incoming = [{"type": "http.request", "body": request.read(), "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/segment",
        "raw_path": b"/segment",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("maskserve", 80),
    }
    task = asyncio.ensure_future(app(scope, receive, send))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return sent, disconnected.set
