"""What POST /segment answers: the document, its masks, the media type, the request id and the log line."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.app.fakes import CATEGORIES, PHOTO, ask, post, serving

if TYPE_CHECKING:
    import httpx


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
    assert document["max_instances"] == 100
    # How large its objects are is not known.
    assert document["tile_overlap"] == 0.2
    assert document["ap"] == {"mask": 0.5}
    assert response.headers["cache-control"] == "no-store"


def test_each_request_is_one_line_in_the_log_without_probes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask("POST", "/segment?masks=none", content=PHOTO, headers={"x-request-id": "the-id"})
    ask("GET", "/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "app.http.request_context"]
    (line,) = lines
    assert line.startswith("POST /segment 200 ")
    assert line.endswith("ms id=the-id")
