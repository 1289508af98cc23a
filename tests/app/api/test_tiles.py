"""Large images in tiles: admitted as a whole, run through the queue tile by tile, and refused where they are absurd."""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch
from PIL import Image

from app.api import streaming
from app.api.query import TIMEOUT_HEADER
from model.inference.tiled import TiledImage
from tests.app.fakes import (
    PATIENCE,
    PHOTO,
    FakeEngine,
    Scripted,
    ask,
    picture,
    png_of,
    post,
    request_event,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx
    import pytest
    from fastapi import FastAPI
    from numpy.typing import NDArray

    from model.instances import Instances, Options
    from model.masks.merge import TileDetections

# In tiles of 64 pixels that overlap by a fifth: 4 × 3, and with the whole image one more.
LARGE = picture("PNG", 200, 150)
TILES = 12


def without_id(response: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    assert document.pop("id") == response.headers["x-request-id"]
    return document


# Query → what the refusal says.
ABSURD = {
    "tile=0": "tile must be auto, or a whole number of pixels from 64 to 65535, not",
    "tile=63": "tile must be",
    "tile=-1": "tile must be",
    "tile=65536": "tile must be",
    "tile=" + "9" * 5000: "tile must be",
    "tile=Auto": "tile must be",
    "tile=64.0": "tile must be",
    "tile=": "tile is empty",
    "tile=64&tile=64": '"tile" is given more than once',
    "tile=64&overlap=1": "overlap must be a number from 0.05 to 0.5, not",
    "tile=64&overlap=0": "overlap must be",
    "tile=64&overlap=nan": "overlap must be",
    "tile=64&whole=2": "whole must be true or false",
    "tile=64&max_instances=100001": "max_instances must be a whole number from 1 to 100000 with tile, not",
    "overlap=0.2": '"overlap" is for images in tiles; it needs the parameter tile',
    "whole=false": '"whole" is for images in tiles',
}


def answers(queries: Iterable[str], image: bytes, engine: FakeEngine | None = None) -> list[httpx.Response]:
    """The answers of one service to an image, asked in these ways."""

    async def run() -> list[httpx.Response]:
        async with serving(engine) as (client, _):
            return [await client.post(f"/segment?{query}", content=image) for query in queries]

    return asyncio.run(run())


def test_an_image_that_one_tile_covers_gets_the_plain_answer() -> None:
    queries = ["", "tile=64&overlap=0.5&whole=true", "tile=auto", "tile=65535"]
    bodies = {
        response.content.replace(response.headers["x-request-id"].encode(), b"ID")
        for response in answers(queries, PHOTO)
    }
    assert len(bodies) == 1


def test_absurd_tiles_are_422() -> None:
    for says, response in zip(ABSURD.values(), answers(ABSURD, LARGE), strict=True):
        assert response.status_code == 422, says
        assert says in response.json()["detail"]


def test_absurdly_many_tiles_are_refused_by_the_header_alone() -> None:
    settings = {"max_image_pixels": 1 << 30, "max_queue_pixels": 1 << 30}
    response = post("?tile=64&overlap=0.5", png_of(30_000, 30_000), settings=settings)
    assert response.status_code == 422
    assert "at most 16384 are accepted. Take larger tiles" in response.json()["detail"]


class FillingEngine(FakeEngine):
    """Finds a person that fills each image, and a dog in its middle."""

    def instances(self, image: NDArray[np.uint8], wanted: Options) -> Instances:
        height, width = image.shape[:2]
        boxes = torch.tensor([[0.0, 0, width, height], [20, 20, 40, 40]])
        found = super().instances(image, wanted)
        return replace(found, boxes=boxes[: len(found)])


def test_tiles_of_one_shape_share_batches_and_are_admitted_as_a_whole() -> None:
    in_flight: set[tuple[int, int]] = set()
    batches: list[int] = []

    class Engine(FillingEngine):
        def segment(self, images: Any, options: Any) -> Any:
            assert len({image.shape for image in images}) == 1
            assert not any(image.flags.owndata for image in images)
            in_flight.add((admission[0].requests, admission[0].pixels))
            batches.append(len(images))
            return super().segment(images, options)

    admission: list[Any] = []

    async def run() -> httpx.Response:
        async with serving(Engine()) as (client, app):
            admission.append(app.state.service.admission)
            response = await client.post("/segment?tile=64&whole=true", content=LARGE)
            assert (admission[0].requests, admission[0].pixels, admission[0].input_pixels) == (0, 0, 0)
            return response

    document = without_id(asyncio.run(run()))
    assert in_flight == {(1, 200 * 150)}
    assert sum(batches) == TILES + 1
    assert max(batches) > 1
    assert document["image"] == {"width": 200, "height": 150}
    person, *dogs = document["instances"]
    assert (person["category"], person["bbox"]) == ("person", [0, 0, 200, 150])
    assert [dog["category"] for dog in dogs] == ["dog"] * TILES
    assert all(found["segmentation"]["size"] == [150, 200] for found in document["instances"])


def test_detections_are_kept_one_tile_at_a_time_and_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []
    adding = threading.Lock()

    class Recording(TiledImage):
        def add(self, found: TileDetections | None) -> None:
            assert adding.acquire(blocking=False)
            names.append(threading.current_thread().name)
            super().add(found)
            adding.release()

    monkeypatch.setattr("app.api.segment.TiledImage", Recording)
    response = post("?tile=64", LARGE, settings={"encode_threads": 4})
    assert response.status_code == 200
    assert len(names) == TILES
    assert all(name.startswith("maskserve-encode") for name in names)


def test_an_image_with_more_pixels_than_may_be_in_flight_is_refused_whatever_its_tiles() -> None:
    response = post("?tile=64", LARGE, settings={"max_queue_pixels": 20_000})
    assert response.status_code == 413


def test_merged_instances_come_in_every_format() -> None:
    queries = [f"tile=64&max_instances=3&masks={masks}" for masks in ("rle", "polygon", "png", "none")]
    rle, polygon, png, none = (
        response.json()["instances"] for response in answers(queries, LARGE, FillingEngine())
    )
    for found in rle, polygon, png, none:
        assert [one["bbox"] for one in found] == [one["bbox"] for one in rle]
        assert len(found) == 3
    for found in polygon, png:
        assert [one["area"] for one in found] == [one["area"] for one in rle]
    assert all("counts" in one["segmentation"] for one in rle)
    assert all(len(one["segmentation"][0]) >= 8 for one in polygon)
    assert all("png" in one["mask"] for one in png)
    assert not any({"segmentation", "mask"} & one.keys() for one in none)


def test_the_picture_is_drawn_from_merged_masks() -> None:
    headers = {"accept": "image/png"}
    response = ask("POST", "/segment?tile=64", FillingEngine(), content=LARGE, headers=headers)
    drawn = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))
    # Far from outlines, labels and dogs: the person's orange over the picture's navy.
    assert drawn.shape == (150, 200, 3)
    red, green, blue = drawn[145, 5].tolist()
    assert red > green > 40
    assert blue < 100


def test_tiles_of_a_client_that_leaves_never_run() -> None:
    entered, release = threading.Event(), threading.Event()

    def behave() -> None:
        entered.set()
        release.wait(PATIENCE)

    engine = FakeEngine(behave)

    async def run() -> FastAPI:
        async with serving(engine, max_batch_size=1) as (_, app):
            admission = app.state.service.admission
            client = Scripted(app, [request_event(LARGE)], query="tile=64")
            await until(lambda: entered.is_set() and app.state.service.worker.waiting[0] > 1)
            client.begin_shutdown()
            await until(lambda: admission.requests == 0)
            release.set()
            await client.run
            await until(lambda: engine.images == 1)
            assert app.state.service.worker.waiting == (0, 0)
            return app

    asyncio.run(run())
    assert engine.images == 1


def test_the_deadline_holds_for_every_tile() -> None:
    release = threading.Event()
    engine = FakeEngine(lambda: release.wait(PATIENCE))

    async def run() -> httpx.Response:
        async with serving(engine, max_batch_size=1) as (client, app):
            headers = {TIMEOUT_HEADER: "500"}
            response = await client.post("/segment?tile=64", content=LARGE, headers=headers)
            assert app.state.service.admission.requests == 0
            assert app.state.service.worker.waiting == (0, 0)
            release.set()
            return response

    response = asyncio.run(run())
    assert response.status_code == 504
    assert engine.images <= 1


def test_lines_say_how_many_tiles_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PROGRESS_SECONDS", 0.01)
    steps = threading.Semaphore(3)
    engine = FakeEngine(lambda: steps.acquire(timeout=PATIENCE))

    async def run() -> bytes:
        async with serving(engine, max_batch_size=1) as (_, app):
            headers = {"accept": "application/x-ndjson"}
            client = Scripted(app, [request_event(LARGE)], headers, query="tile=64")
            await until(lambda: b'"done":3' in client.body)
            steps.release(TILES)
            await client.run
            return client.body

    *progress, last = map(orjson.loads, asyncio.run(run()).splitlines())
    assert progress[-1]["tiles"]["total"] == TILES
    assert all(line["index"] == 0 and line["id"] == last["id"] for line in progress)
    assert last["index"] == 0
    assert last["instances"]
