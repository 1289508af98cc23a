"""What a bare checkout serves where nothing is set, as the README's reader meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "nuclei"
DOCUMENT: dict[str, Any] = json.loads((EXAMPLES / "instances.json").read_text())
# TP/(TP+FP+FN) of an example at an IoU of 0.5; nuclei of stained tissue lie closest.
LEAST_FOUND = {"tissue.png": 0.4}


@pytest.fixture(scope="module")
def bare(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server without COCO weights."""
    empty = tmp_path_factory.mktemp("weights")
    server = start_for_module(model="auto", weights_dir=empty, precision="auto", request_timeout=600)
    with httpx.Client(base_url=server.wait_until_ready().url, timeout=300) as client:
        yield client


def test_it_serves_nuclei_and_says_how_to_get_the_coco_model(bare: httpx.Client) -> None:
    model = bare.get("/model").json()
    assert model["name"] == "nuclei"
    assert [category["name"] for category in model["categories"]] == ["nucleus"]
    assert model["max_instances"] >= 300
    assert "cell nuclei in microscopy images and nothing else" in model["notice"]
    assert "maskserve weights fetch maskrcnn_resnet50_fpn_v2" in model["notice"]


@pytest.mark.parametrize("image", DOCUMENT["images"], ids=lambda image: image["file_name"])
def test_the_nuclei_of_an_example_are_found(bare: httpx.Client, image: dict[str, Any]) -> None:
    answer = bare.post("/segment", content=(EXAMPLES / "images" / image["file_name"]).read_bytes()).json()
    found = [instance["segmentation"] for instance in answer["instances"]]
    truth = [a["segmentation"] for a in DOCUMENT["annotations"] if a["image_id"] == image["id"]]
    matched = int((coco_mask.iou(found, truth, [0] * len(truth)).max(0) >= 0.5).sum())
    assert matched / (len(found) + len(truth) - matched) >= LEAST_FOUND.get(image["file_name"], 0.6)


def test_the_readme_shows_what_the_service_answers(bare: httpx.Client) -> None:
    """In float32: in bfloat16 digits and edges of masks differ, and others may have the highest scores."""
    text = (ROOT / "README.md").read_text()
    request = re.search(r"curl -F image=@(\S+) 'localhost:8000/segment(\S*)'", text)
    shown = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert request is not None
    assert shown is not None
    printed = json.loads(shown[1])
    image = (ROOT / request[1]).read_bytes()
    answer = bare.post(f"/segment{request[2]}", files={"image": image}).json()
    assert printed.keys() == answer.keys()
    assert (printed["image"], printed["model"]) == (answer["image"], answer["model"])
    assert len(printed["instances"]) == len(answer["instances"]) > 0
    everything = bare.post("/segment", files={"image": image}).json()["instances"]
    for old, best in zip(printed["instances"], answer["instances"], strict=True):
        overlaps = coco_mask.iou(
            [old["segmentation"]], [i["segmentation"] for i in everything], [0] * len(everything)
        )
        new = everything[int(overlaps.argmax())]
        assert overlaps.max() > 0.97
        assert old.keys() == new.keys()
        assert old["category"] == new["category"]
        assert old["score"] == pytest.approx(new["score"], abs=0.01)
        assert old["score"] == pytest.approx(best["score"], abs=0.01)
        assert old["bbox"] == pytest.approx(new["bbox"], abs=2)
