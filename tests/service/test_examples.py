"""The drawn scenes through the bundled model that is for them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from model.zoo import catalogue as weights
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "shapes"
DOCUMENT: dict[str, Any] = json.loads((EXAMPLES / "instances.json").read_text())
IMAGES: dict[int, str] = {image["id"]: image["file_name"] for image in DOCUMENT["images"]}
NAMES: dict[int, str] = {category["id"]: category["name"] for category in DOCUMENT["categories"]}
REQUESTS = 13
# Below it something else than the committed file is loaded, or evaluated.
LEAST_MASK_AP = {"nuclei": 0.40, "shapes": 0.80}


def content(image_id: int) -> bytes:
    return (EXAMPLES / "images" / IMAGES[image_id]).read_bytes()


def objects(image_id: int) -> list[dict[str, Any]]:
    """The annotated objects that must be found: longer than 24 px and at least half visible."""
    return [
        a
        for a in DOCUMENT["annotations"]
        if a["image_id"] == image_id and max(a["bbox"][2:]) > 24 and a["visibility"] >= 0.5
    ]


@pytest.fixture(scope="module")
def bundled(start_for_module: Any) -> Iterator[httpx.Client]:
    """A client of a server that serves `shapes` as it does when little is set: all cores, auto precision."""
    # So many at once may take longer than the usual minute where other tests run beside this one.
    server = start_for_module(
        model="shapes", threads=0, precision="auto", max_queue_requests=REQUESTS, request_timeout=600
    )
    with httpx.Client(base_url=server.wait_until_ready().url, timeout=300) as client:
        yield client


def without_id(response: httpx.Response) -> bytes:
    assert response.status_code == 200, response.text
    return response.content.replace(response.headers["x-request-id"].encode(), b"", 1)


def test_there_are_six_small_pictures() -> None:
    assert len(IMAGES) == 6
    assert all(len(content(image_id)) < 150_000 for image_id in IMAGES)


@pytest.fixture(scope="module")
def answers(bundled: httpx.Client) -> dict[int, httpx.Response]:
    """What each example gets when it is sent alone."""
    return {image_id: bundled.post("/segment", content=content(image_id)) for image_id in IMAGES}


@pytest.mark.parametrize("image_id", IMAGES)
def test_every_object_of_an_example_is_found(answers: dict[int, httpx.Response], image_id: int) -> None:
    found = answers[image_id].raise_for_status().json()["instances"]
    for wanted in objects(image_id):
        same = [i["segmentation"] for i in found if i["category_id"] == wanted["category_id"]]
        overlap = coco_mask.iou(same, [wanted["segmentation"]], [0]) if same else np.zeros(1)
        assert overlap.max() >= 0.75, f"{NAMES[wanted['category_id']]} at {wanted['bbox']}"


def test_all_three_body_forms_get_the_same_bytes_but_for_the_id(bundled: httpx.Client) -> None:
    image = content(min(IMAGES))
    answers = {
        without_id(bundled.post("/segment", content=image, headers={"content-type": "image/jpeg"})),
        without_id(bundled.post("/segment", files={"image": ("scene.jpg", image, "image/jpeg")})),
        without_id(bundled.post("/segment", json={"image": base64.b64encode(image).decode()})),
    }
    assert len(answers) == 1


def test_instances_are_coco_results(
    answers: dict[int, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        {"image_id": image_id, **instance}
        for image_id in IMAGES
        for instance in answers[image_id].json()["instances"]
    ]
    truth = COCO(EXAMPLES / "instances.json")
    loaded = truth.loadRes(results)
    assert len(loaded.anns) == len(results) > 6
    for annotation in loaded.anns.values():
        assert int(loaded.annToMask(annotation).sum()) == coco_mask.area(annotation["segmentation"])
    capsys.readouterr()


def test_requests_at_once_get_what_each_image_gets_alone(
    bundled: httpx.Client, answers: dict[int, httpx.Response]
) -> None:
    images = [content(image_id) for image_id in IMAGES]
    expected = [without_id(answers[image_id]) for image_id in IMAGES]
    # Two that have the padded shape of another, but not its size.
    for image_id in sorted(IMAGES)[:2]:
        picture, file = Image.open(io.BytesIO(content(image_id))), io.BytesIO()
        picture.resize((round(picture.width * 0.7), round(picture.height * 0.7))).save(file, "PNG")
        images.append(file.getvalue())
        expected.append(without_id(bundled.post("/segment", content=file.getvalue())))
    garbage = images[0][:3000]

    async def send_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=REQUESTS)
        async with httpx.AsyncClient(base_url=bundled.base_url, timeout=300, limits=limits) as client:
            bodies = [images[number % len(images)] for number in range(REQUESTS)]
            bodies[REQUESTS // 2] = garbage
            return list(await asyncio.gather(*(client.post("/segment", content=body) for body in bodies)))

    together = asyncio.run(send_all())
    spoilt = together.pop(REQUESTS // 2)
    assert spoilt.status_code == 422
    assert spoilt.headers["content-type"] == "application/problem+json"
    numbers = [n for n in range(REQUESTS) if n != REQUESTS // 2]
    for number, answer in zip(numbers, together, strict=True):
        assert without_id(answer) == expected[number % len(images)]


@pytest.mark.parametrize("name", weights.bundled())
def test_a_bundled_models_file_and_card_agree_on_what_it_scored(name: str) -> None:
    model = model_file.read(zoo.bundled_path(name))[1]
    card = zoo.bundled_path(name).with_suffix(".md").read_text()
    rows = {row.split("|")[1].strip(): row for row in card.splitlines() if row.startswith("| ")}
    for kind in ("box", "mask"):
        cells = [float(cell) for cell in rows[kind].split("|")[2:4]]
        assert cells == pytest.approx([model.ap[kind], model.ap[f"{kind}50"]], abs=0.0006)
        [row] = re.findall(rf"^\| `{name}` \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
        assert f" {100 * model.ap[kind]:.1f} |" in row
    assert model.ap["mask"] >= LEAST_MASK_AP[name]


@pytest.mark.parametrize("name", weights.bundled())
def test_a_bundled_model_is_small_enough_to_commit(name: str) -> None:
    assert zoo.bundled_path(name).stat().st_size <= 32_000_000
