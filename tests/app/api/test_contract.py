"""The HTTP contract of DESIGN.md, section 3: every form, option, header and problem, on a fake engine.

The application, its worker and its decoding are the real ones.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import orjson
import pytest
import torch
from PIL import Image

from app.main import create_app
from app.problems import Problem
from app.settings import Settings
from model.data import Category
from model.instances import Instances, Options
from model.network.architecture import Architecture
from model.zoo.zoo import describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import FastAPI
    from numpy.typing import NDArray

PATIENCE = 20  # seconds, for what takes milliseconds; met only when something hangs
CATEGORIES = (Category(1, "person"), Category(18, "dog"))


def picture(kind: str, width: int = 40, height: int = 30) -> bytes:
    """An image file of two colours."""
    image = Image.new("RGB", (width, height), "navy")
    image.paste("orange", (5, 5, width // 2, height // 2))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PHOTO = picture("PNG")


class FakeEngine:
    """Finds a person and a dog in every image, or does what the test tells it to."""

    def __init__(self, behave: Callable[[], None] = lambda: None) -> None:
        self.model = describe(
            "fake",
            Architecture(classes=3),
            CATEGORIES,
            ap={"mask": 0.5},
            sha256="f" * 64,
            notice="Only a fake.",
        )
        self.device = torch.device("cpu")
        self.precision = "float32"
        self.batches = True
        self.behave = behave
        self.images = 0

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def device_memory(self) -> dict[str, int]:
        return {}

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 32) * 32, -(-width // 32) * 32

    def warm_up(self) -> None:
        pass

    def segment(self, images: Sequence[NDArray[np.uint8]], options: Sequence[Options]) -> list[Instances]:
        self.behave()
        self.images += len(images)
        return [self.instances(image, wanted) for image, wanted in zip(images, options, strict=True)]

    def instances(self, image: NDArray[np.uint8], wanted: Options) -> Instances:
        height, width = image.shape[:2]
        scores = torch.tensor([0.98765432, 0.6])
        labels = torch.tensor([1, 18])
        boxes = torch.tensor([[1.234, 2.345, width - 3.1, height - 4.2], [0.0, 0.0, 8.0, 8.0]])
        kept = scores >= wanted.score_threshold
        if wanted.categories is not None:
            kept &= torch.tensor([int(label) in wanted.categories for label in labels])
        chosen = kept.nonzero().flatten()[: wanted.max_instances]
        probabilities = torch.full((2, 28, 28), 0.9)[chosen] if wanted.masks else None
        return Instances((height, width), boxes[chosen], scores[chosen], labels[chosen], probabilities)


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    *,
    load: Callable[[], FakeEngine] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    wait: bool = True,
    **settings: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an application that is ready, or with wait=False still loads."""
    app = create_app(Settings(**settings), load or (lambda: engine or FakeEngine()), on_failure)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://maskserve") as client,
        asyncio.timeout(PATIENCE),
    ):
        if wait:
            await app.state.service.ready.wait()
        yield client, app


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop go on until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def ask(
    method: str,
    url: str,
    engine: FakeEngine | None = None,
    settings: dict[str, Any] | None = None,
    **request: Any,
) -> httpx.Response:
    """The answer to one request."""

    async def run() -> httpx.Response:
        async with serving(engine, **(settings or {})) as (client, _):
            return await client.request(method, url, **request)

    return asyncio.run(run())


def post(query: str = "", content: bytes = PHOTO, kind: str = "image/png", **more: Any) -> httpx.Response:
    """The answer to a raw image."""
    return ask("POST", f"/segment{query}", content=content, headers={"content-type": kind}, **more)


# The answer


def test_the_answer_is_the_document_of_the_contract() -> None:
    response = post()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["id", "model", "image", "instances"]
    assert document["id"] == response.headers["x-request-id"]
    assert document["model"] == "fake"
    assert document["image"] == {"width": 40, "height": 30}
    person, dog = document["instances"]
    assert list(person) == ["category_id", "category", "score", "bbox", "area", "segmentation"]
    assert (person["category_id"], person["category"]) == (1, "person")
    assert person["score"] == 0.9877
    assert person["bbox"] == [1.23, 2.35, 35.67, 23.45]
    assert person["segmentation"]["size"] == [30, 40]
    assert dog["score"] == 0.6
    assert dog["bbox"] == [0, 0, 8, 8]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11
def test_area_is_the_masks_pixel_count_and_loadres_takes_the_instances() -> None:
    from pycocotools import mask
    from pycocotools.coco import COCO

    instances = post().json()["instances"]
    for instance in instances:
        assert instance["area"] == int(mask.decode(instance["segmentation"]).sum())
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "width": 40, "height": 30}],
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes([{**instance, "image_id": 7} for instance in instances])
    assert len(results.getAnnIds()) == 2
    assert results.annToMask(results.anns[1]).sum() == instances[0]["area"]


def test_polygons_are_a_coco_segmentation_that_fills_to_the_same_mask() -> None:
    from pycocotools import mask

    async def run() -> list[list[dict[str, Any]]]:
        async with serving() as (client, _):
            queries = ["", "?masks=polygon"]
            return [
                (await client.post(f"/segment{query}", content=PHOTO)).json()["instances"]
                for query in queries
            ]

    for rle, polygon in zip(*asyncio.run(run()), strict=True):
        assert list(polygon) == list(rle)
        assert polygon["area"] == rle["area"]
        (part,) = polygon["segmentation"]
        filled = mask.merge(mask.frPyObjects([part], 30, 40))
        assert mask.iou([filled], [rle["segmentation"]], [0])[0, 0] > 0.97


def test_png_masks_are_bitmaps_of_the_box_with_their_place() -> None:
    from pycocotools import mask

    async def run() -> list[list[dict[str, Any]]]:
        async with serving() as (client, _):
            queries = ["", "?masks=png"]
            return [
                (await client.post(f"/segment{query}", content=PHOTO)).json()["instances"]
                for query in queries
            ]

    for rle, png in zip(*asyncio.run(run()), strict=True):
        assert "segmentation" not in png
        assert png["area"] == rle["area"]
        place = png["mask"]
        whole = np.zeros((30, 40), np.uint8)
        with Image.open(io.BytesIO(base64.b64decode(place["png"]))) as bitmap:
            assert (bitmap.format, bitmap.mode) == ("PNG", "1")
            assert bitmap.size == (place["width"], place["height"])
            whole[
                place["top"] : place["top"] + place["height"], place["left"] : place["left"] + place["width"]
            ] = bitmap
        np.testing.assert_array_equal(whole, mask.decode(rle["segmentation"]))


def test_without_masks_there_is_no_segmentation_and_the_area_is_the_boxs() -> None:
    person, dog = post("?masks=none").json()["instances"]
    assert "segmentation" not in person
    assert person["area"] == 836.46
    assert dog["area"] == 64


@pytest.mark.parametrize(
    ("query", "categories"),
    [
        ("", ["person", "dog"]),
        ("?score_threshold=0.7", ["person"]),
        ("?max_instances=1", ["person"]),
        ("?categories=dog", ["dog"]),
        ("?categories=18&score_threshold=0.9", []),
    ],
)
def test_options_reach_the_engine(query: str, categories: list[str]) -> None:
    assert [instance["category"] for instance in post(query).json()["instances"]] == categories


def test_all_three_body_forms_get_the_same_bytes_but_for_the_id() -> None:
    async def run() -> list[httpx.Response]:
        async with serving() as (client, _):
            encoded = base64.b64encode(PHOTO).decode()
            return [
                await client.post("/segment", content=PHOTO),
                await client.post("/segment", content=PHOTO, headers={"content-type": "image/png"}),
                await client.post("/segment", files={"image": ("photo.png", PHOTO, "image/png")}),
                await client.post("/segment", json={"image": encoded}),
                await client.post("/segment", json={"image": f"data:image/png;base64,{encoded}"}),
            ]

    bodies = {
        response.content.replace(response.headers["x-request-id"].encode(), b"ID")
        for response in asyncio.run(run())
    }
    assert len(bodies) == 1


def test_server_timing_names_every_stage() -> None:
    entries = post().headers["server-timing"].split(", ")
    stages = dict(entry.split(";dur=") for entry in entries)
    assert list(stages) == ["read", "decode", "queue", "forward", "encode", "total"]
    assert float(stages["total"]) >= float(stages["decode"])


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("application/json, image/png;q=0.5", "application/json"),
        ("image/avif,image/webp", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("application/json;q=0.1, image/jpeg;q=0.9", "image/jpeg"),
        ("image/png;q=nan", "application/json"),
        ("image/png;q=0", "application/json"),
    ],
)
def test_accept_chooses_between_json_and_the_picture(accept: str | None, kind: str) -> None:
    headers = {} if accept is None else {"accept": accept}
    response = ask("POST", "/segment", content=PHOTO, headers=headers)
    assert response.headers["content-type"] == kind
    assert response.headers["vary"] == "Accept"
    if kind.startswith("image/"):
        drawn = Image.open(io.BytesIO(response.content))
        assert drawn.size == (40, 30)
        assert np.asarray(drawn.convert("RGB")).tolist() != np.asarray(Image.open(io.BytesIO(PHOTO))).tolist()


# The request's id


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, "~!\"'"])
def test_a_sane_request_id_is_kept(given: str) -> None:
    response = ask("POST", "/segment", content=PHOTO, headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given
    assert response.json()["id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "ä".encode(), "a\tb"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    response = ask("GET", "/healthz", headers={"x-request-id": given})
    assert len(response.headers["x-request-id"]) == 32
    assert int(response.headers["x-request-id"], 16)


# Problems


def fail() -> None:
    raise RuntimeError("the secret inside")


def png_of(width: int, height: int) -> bytes:
    """The header of a PNG that claims this size."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


PROBLEMS = [
    pytest.param("POST", "/segment", {}, 400, "malformed-request", "no image", id="empty body"),
    pytest.param(
        "POST", "/segment", {"json": {"file": ""}}, 400, "malformed-request", "image", id="JSON key"
    ),
    pytest.param(
        "POST", "/segment", {"files": {"photo": PHOTO}}, 400, "malformed-request", "photo", id="part name"
    ),
    pytest.param(
        "POST", "/segment", {"data": {"image": "x"}}, 400, "malformed-request", "HTML form", id="form"
    ),
    pytest.param("GET", "/nothing", {}, 404, "unknown-path", "/nothing", id="unknown path"),
    pytest.param("POST", "/segmnt", {}, 404, "unknown-path", "/segment", id="misspelt path"),
    pytest.param("POST", "/segment/", {}, 404, "unknown-path", "/segment", id="slash at the end"),
    pytest.param("GET", "/page/nothing.js", {}, 404, "unknown-path", "/page/nothing.js", id="unknown file"),
    pytest.param("GET", "/segment", {}, 405, "method-not-allowed", "POST", id="GET of segment"),
    pytest.param("HEAD", "/segment", {}, 405, None, None, id="HEAD of segment"),
    pytest.param("DELETE", "/model", {}, 405, "method-not-allowed", "GET", id="DELETE of model"),
    pytest.param("POST", "/segment", {"content": b"x" * 5000}, 413, "body-too-large", "4096", id="body"),
    pytest.param(
        "POST", "/segment", {"content": png_of(500, 500)}, 413, "image-too-large", "250000", id="pixels"
    ),
    pytest.param(
        "POST", "/segment", {"content": png_of(2**31, 1)}, 413, "image-too-large", "", id="absurd size"
    ),
    pytest.param("POST", "/segment", {"content": b"hello"}, 415, "unsupported-format", "JPEG", id="text"),
    pytest.param("POST", "/segment", {"content": b"%PDF-1.7\n"}, 415, "unsupported-format", "JPEG", id="PDF"),
    pytest.param("POST", "/segment", {"content": PHOTO[:-45]}, 422, "undecodable-image", "", id="cut short"),
    pytest.param(
        "POST", "/segment", {"content": PHOTO[:20]}, 422, "undecodable-image", "", id="cut in the header"
    ),
    pytest.param(
        "POST",
        "/segment?masks=gif",
        {"content": PHOTO},
        422,
        "invalid-parameter",
        "rle, polygon, png, none",
        id="parameter",
    ),
    pytest.param(
        "POST",
        "/segment?thresold=1",
        {"content": PHOTO},
        422,
        "invalid-parameter",
        "score_threshold",
        id="unknown",
    ),
]


@pytest.mark.parametrize(("method", "url", "request_", "status", "slug", "says"), PROBLEMS)
def test_problem(
    *, method: str, url: str, request_: dict[str, Any], status: int, slug: str | None, says: str | None
) -> None:
    limits = {"max_upload_bytes": 4096, "max_image_pixels": 10_000}
    response = ask(method, url, settings=limits, **request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    if slug is None:
        assert response.content == b""
        return
    document = response.json()
    assert document["type"] == f"urn:maskserve:problem:{slug}"
    assert document["status"] == status
    assert document["title"]
    assert says in document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert "total;dur=" in response.headers["server-timing"]
    if status == 405:
        assert says in response.headers["allow"]


def test_an_internal_error_is_logged_under_its_id_and_leaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    response = ask("POST", "/segment", FakeEngine(fail), content=PHOTO, headers={"x-request-id": "the-id"})
    assert response.status_code == 500
    assert response.json()["type"] == "urn:maskserve:problem:internal"
    assert "secret" not in response.text
    records = [record for record in caplog.records if "the-id" in record.getMessage()]
    assert any("the secret inside" in record.getMessage() for record in records)


def test_an_error_that_nobody_expected_is_a_problem_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.responses.preferred", lambda _: fail())
    response = ask("POST", "/segment", content=PHOTO, headers={"x-request-id": "the-id"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "the-id"
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info and "the-id" in record.getMessage()]
    assert str(record.exc_info[1]) == "the secret inside"


def test_every_problem_is_documented_for_its_route() -> None:
    document = ask("GET", "/openapi.json").json()
    documented = {
        example
        for path in document["paths"].values()
        for operation in path.values()
        for answer in operation["responses"].values()
        for example in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    kinds = {kind.slug for kind in [Problem, *Problem.__subclasses__()]}
    anywhere = {"unknown-path", "method-not-allowed", "header-too-slow", "header-too-large"}
    assert documented == kinds - anywhere


# Time and load


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


def test_a_full_house_is_said_at_the_door_like_every_other_problem() -> None:
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


class Scripted:
    """An ASGI client that sends what the test says and remembers what came back."""

    def __init__(
        self, app: FastAPI, events: list[dict[str, Any]], headers: dict[str, str] | None = None
    ) -> None:
        self.events = events
        self.more = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/segment",
            "raw_path": b"/segment",
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
            "server": ("maskserve", 80),
        }
        self.run = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        while not self.events:
            await self.more.wait()
            self.more.clear()
        return self.events.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def begin_shutdown(self) -> None:
        self.events.append({"type": "http.disconnect"})
        self.more.set()

    @property
    def status(self) -> int:
        return self.sent[0]["status"]


def request_event(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_client_that_leaves_while_waiting_frees_its_place_and_its_image_is_never_run() -> None:
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


def test_a_client_that_leaves_while_sending_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> list[Any]:
        async with serving() as (_, app):
            client = Scripted(app, [request_event(PHOTO[:10], more=True), {"type": "http.disconnect"}])
            await client.run
            return client.sent

    assert asyncio.run(run()) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(" 499 " in record.getMessage() for record in caplog.records)


def test_a_refused_client_has_its_answer_before_the_rest_of_its_body_is_thrown_away() -> None:
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


# Probes and life-cycle


def test_probes_answer_while_the_model_loads_and_requests_are_told_to_come_back() -> None:
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
    from model.zoo.zoo import ModelError

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


def test_a_warm_up_that_fails_asks_for_the_end() -> None:
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


def test_the_model_is_described() -> None:
    response = ask("GET", "/model")
    document = response.json()
    assert document["name"] == "fake"
    assert document["notice"] == "Only a fake."
    assert document["categories"] == [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    assert document["sha256"] == "f" * 64
    assert document["device"] == "cpu"
    assert document["precision"] == "float32"
    assert document["input_size"] == {"shorter_side": 800, "longer_side_at_most": 1333}
    assert document["ap"] == {"mask": 0.5}
    assert response.headers["cache-control"] == "no-store"


# Methods, pages, documents


@pytest.mark.parametrize("path", ["/", "/docs", "/model", "/healthz", "/livez", "/readyz", "/openapi.json"])
def test_head_is_get_without_the_body(path: str) -> None:
    head, get = ask("HEAD", path), ask("GET", path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/segment", "OPTIONS, POST"), ("/model", "GET, HEAD, OPTIONS"), ("/", "GET, HEAD, OPTIONS")],
)
def test_options_tells_the_methods(path: str, allow: str) -> None:
    response = ask("OPTIONS", path)
    assert response.status_code == 204
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere_and_every_file_that_they_name_is_there(path: str) -> None:
    import re

    async def run() -> None:
        async with serving() as (client, _):
            page = await client.get(path)
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
            assert "<script>" not in page.text
            for name in re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text):
                file = await client.get(f"/{name}")
                assert file.status_code == 200, name
                assert (
                    "http://" not in file.text.replace("http://www.w3.org", "")
                    or "swagger" in name
                    or "json" in name
                )

    asyncio.run(run())


def test_openapi_documents_every_parameter_and_body_form_with_examples_that_work() -> None:
    async def run() -> None:
        async with serving() as (client, _):
            document = (await client.get("/openapi.json")).json()
            operation = document["paths"]["/segment"]["post"]
            assert [p["name"] for p in operation["parameters"]] == [
                "score_threshold",
                "max_instances",
                "categories",
                "masks",
                "X-Request-Timeout-Ms",
            ]
            forms = operation["requestBody"]["content"]
            assert set(forms) == {
                "multipart/form-data",
                "application/octet-stream",
                "image/*",
                "application/json",
            }
            answer = await client.post("/segment", json=forms["application/json"]["example"])
            assert answer.status_code == 200
            assert {"/segment", "/model", "/healthz", "/livez", "/readyz", "/metrics"} == set(
                document["paths"]
            )

    asyncio.run(run())


def test_openapi_example_answer_is_a_true_one() -> None:
    from app.api.schemas import EXAMPLE
    from model.masks.rle import Rle

    (instance,) = EXAMPLE["instances"]
    assert Rle.from_coco(instance["segmentation"]).area == instance["area"]
    assert instance["segmentation"]["size"] == [EXAMPLE["image"]["height"], EXAMPLE["image"]["width"]]
    assert list(EXAMPLE) == list(post().json())
    assert list(instance) == list(post().json()["instances"][0])


def test_each_request_is_one_line_in_the_log_without_probes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask("POST", "/segment?masks=none", content=PHOTO, headers={"x-request-id": "the-id"})
    ask("GET", "/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "app.http.request_context"]
    (line,) = lines
    assert line.startswith("POST /segment 200 ")
    assert line.endswith("ms id=the-id")
