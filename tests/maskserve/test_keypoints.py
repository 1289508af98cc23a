"""Keypoints in the client's results, and handed on to COCO, CVAT and Label Studio."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from app.commands.overlay import draw_overlay
from app.commands.segment import write_overlays
from maskserve import AnswerError, Result
from maskserve.export import coco_dataset, coco_results, cvat, label_studio
from model.images.decode import decode, encode_png

if TYPE_CHECKING:
    from pathlib import Path

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "person", "keypoints": ["head", "foot"], "skeleton": [[1, 2]]}
]
POINTS = [10.5, 20.25, 1, 30, 40, 1]
MASK = {"size": [60, 80], "counts": [0, 4800]}


def result(**changes: Any) -> Result:
    instance = {
        "category_id": 1,
        "category": "person",
        "score": 0.9,
        "bbox": [8, 16, 32, 30],
        "area": 960,
        "keypoints": POINTS,
        "keypoint_scores": [5.5, 3.0],
        **changes,
    }
    image = {"width": 80, "height": 60}
    return Result.from_document({"id": "x", "model": "m", "image": image, "instances": [instance]})


def test_an_instance_has_them_as_arrays() -> None:
    (instance,) = result().instances
    assert instance.keypoints is not None
    assert instance.keypoints.tolist() == [[10.5, 20.25, 1], [30, 40, 1]]
    assert instance.keypoint_scores is not None
    assert instance.keypoint_scores.tolist() == [5.5, 3.0]
    (without,) = result(keypoints=None, keypoint_scores=None).instances
    assert without.keypoints is None


@pytest.mark.parametrize("damaged", [[1, 2], ["a", 1, 1], [[1, 2, 1]], 5])
def test_what_are_no_keypoints_is_an_error(damaged: Any) -> None:
    (instance,) = result(keypoints=damaged).instances
    with pytest.raises(AnswerError, match="keypoints of a person"):
        instance.keypoints  # noqa: B018 - a property that raises


def test_coco_results_have_them_as_they_came_and_labels_as_visible() -> None:
    (record,) = coco_results([("a.jpg", result())], {"a.jpg": 7})
    assert (record["image_id"], record["keypoints"]) == (7, POINTS)
    document = coco_dataset([("a.jpg", result())], {"a.jpg": 7}, CATEGORIES)
    (label,) = document["annotations"]
    assert (label["keypoints"], label["num_keypoints"]) == ([10.5, 20.25, 2, 30, 40, 2], 2)
    assert document["categories"] == CATEGORIES


def test_labels_name_keypoints_only_where_there_are_some() -> None:
    without = result(keypoints=None, keypoint_scores=None, segmentation=MASK)
    document = coco_dataset([("a.jpg", without)], {"a.jpg": 7}, CATEGORIES)
    assert document["categories"] == [{"id": 1, "name": "person"}]
    # Nothing is known of them where nothing was found.
    assert coco_dataset([], {}, CATEGORIES)["categories"] == CATEGORIES


def test_cvat_gets_skeletons_of_named_points() -> None:
    image = ET.fromstring(cvat([("a.jpg", result())], CATEGORIES)).find("image")
    (skeleton,) = image.findall("skeleton")
    assert skeleton.get("label") == "person"
    assert [(p.get("label"), p.get("points")) for p in skeleton] == [
        ("head", "10.50,20.25"),
        ("foot", "30.00,40.00"),
    ]
    both = ET.fromstring(cvat([("a.jpg", result(segmentation=MASK))], CATEGORIES)).find("image")
    # A label of CVAT's is of one kind.
    assert [element.get("label") for element in both] == ["person skeleton", "person"]


def test_label_studio_gets_points_below_their_instance() -> None:
    (task,) = label_studio([("a.jpg", result())], categories=CATEGORIES)
    box, head, foot = task["predictions"][0]["result"]
    assert box["value"] == {
        "x": 10.0,
        "y": pytest.approx(100 * 16 / 60),
        "width": 40.0,
        "height": 50.0,
        "rotation": 0,
        "rectanglelabels": ["person"],
    }
    assert (head["parentID"], head["value"]["keypointlabels"]) == (box["id"], ["head"])
    assert (foot["value"]["x"], foot["value"]["y"]) == (37.5, pytest.approx(100 * 40 / 60))
    (task,) = label_studio([("a.jpg", result(segmentation=MASK))], categories=CATEGORIES)
    assert [region["type"] for region in task["predictions"][0]["result"]] == [
        "brushlabels",
        "keypointlabels",
        "keypointlabels",
    ]


def test_the_command_draws_them_by_the_model() -> None:
    blank = encode_png(np.full((60, 80, 3), 90, np.uint8))
    model = {"categories": CATEGORIES, "keypoints": {"scores": "logit", "shown_from": 2.0}}
    drawn = decode(draw_overlay(blank, result(), model=model))
    assert (drawn[30, 20] != 90).any()  # on the line from head to foot
    low = decode(draw_overlay(blank, result(keypoint_scores=[5.5, 1.0]), model=model))
    assert (low[30, 20] == 90).all()


@pytest.mark.parametrize(
    "damaged",
    [
        {"keypoint_scores": [5.5]},
        {"keypoints": [10.5, None, 1, 30, 40, 1]},
        {"keypoints": [10.5, 1e300, 1, 30, 40, 1]},
        {"keypoints": [10.5, 20.25, 1], "keypoint_scores": [5.5]},
    ],
    ids=["a score is missing", "null", "too far", "the model joins more"],
)
def test_what_does_not_fit_costs_one_overlay_only(tmp_path: Path, damaged: dict[str, Any]) -> None:
    photos = [tmp_path / name for name in ("a.png", "b.png")]
    for photo in photos:
        photo.write_bytes(encode_png(np.full((60, 80, 3), 90, np.uint8)))
    overlays = {photo: tmp_path / "drawn" / photo.name for photo in photos}
    answers = zip(photos, (result(**damaged), result()), strict=True)
    (_, first), (_, second) = write_overlays(answers, overlays, lambda: {"categories": CATEGORIES})
    assert isinstance(first, AnswerError)
    assert "do not fit one another, the model or the image" in str(first)
    assert isinstance(second, Result)
    assert [overlays[photo].exists() for photo in photos] == [False, True]


def test_instances_with_different_numbers_of_keypoints_are_not_drawn() -> None:
    document = result().document
    document["instances"].append(
        {**document["instances"][0], "keypoints": POINTS[:3], "keypoint_scores": [1]}
    )
    with pytest.raises(AnswerError, match="do not fit one another"):
        draw_overlay(encode_png(np.full((60, 80, 3), 90, np.uint8)), Result.from_document(document))
