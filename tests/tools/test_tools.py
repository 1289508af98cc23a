"""Results in the tools that people have: each against the real library, where it is installed (group `tools`).

The code here is that of docs/using.md. These libraries are heavy and pin versions of what the service uses, so they
want a virtual environment of their own; docs/using.md says how.
"""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from maskserve import Result
from maskserve.export import coco_dataset, cvat, label_studio
from maskserve.masks import encode_rle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # what those libraries warn of is none of our business

SIZE = (60, 80)
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def library(name: str) -> Any:
    """The module, or a skipped test."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed (dependency group tools): {error}")


def true_masks() -> list[np.ndarray]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = ((y - 25) / 18) ** 2 + ((x - 30) / 25) ** 2
    square = (y > 40) & (x > 55)
    return [(disc < 1) & (disc > 0.2), square]


@pytest.fixture
def result() -> Result:
    """A person, which is a ring, and a dog in the corner."""
    boxes = [[5, 7, 50, 36], [56, 41, 24, 19]]
    records = [
        {
            "category_id": category["id"],
            "category": category["name"],
            "score": score,
            "bbox": box,
            "area": int(mask.sum()),
            "segmentation": encode_rle(mask),
        }
        for category, score, box, mask in zip(CATEGORIES, (0.9, 0.8), boxes, true_masks(), strict=True)
    ]
    return Result.from_document(
        {"id": "x", "model": "fake", "image": {"width": SIZE[1], "height": SIZE[0]}, "instances": records}
    )


def test_supervision_takes_the_arrays(result: Result) -> None:
    sv = library("supervision")
    detections = sv.Detections(
        xyxy=result.boxes, mask=result.masks, confidence=result.scores, class_id=result.category_ids
    )
    assert detections.area.tolist() == [instance.area for instance in result.instances]
    picture = np.zeros((*SIZE, 3), np.uint8)
    annotated = sv.MaskAnnotator(opacity=1.0).annotate(picture.copy(), detections)
    np.testing.assert_array_equal(annotated.any(axis=2), true_masks()[0] | true_masks()[1])


def test_fiftyone_takes_the_crops(result: Result, tmp_path: Path) -> None:
    fo = library("fiftyone")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    detections = []
    for instance in result.instances:
        left, top, bitmap = instance.crop
        height, width = bitmap.shape
        box = [left / result.width, top / result.height, width / result.width, height / result.height]
        detections.append(
            fo.Detection(label=instance.category, bounding_box=box, mask=bitmap, confidence=instance.score)
        )
    sample = fo.Sample(filepath=str(tmp_path / "a.png"), maskserve=fo.Detections(detections=detections))
    for detection, mask in zip(sample["maskserve"].detections, true_masks(), strict=True):
        whole = detection.to_segmentation(frame_size=SIZE[::-1], target=1).mask
        np.testing.assert_array_equal(whole.astype(bool), mask)


def test_datumaro_imports_the_coco_dataset(result: Result, tmp_path: Path) -> None:
    library("datumaro")
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    (tmp_path / "images" / "default").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "default" / "a.png")
    document = coco_dataset([("a.png", result)], {"a.png": 1}, CATEGORIES)
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(document))
    (item,) = Dataset.import_from(str(tmp_path), "coco_instances")
    masks = [annotation for annotation in item.annotations if annotation.type == AnnotationType.mask]
    assert len(masks) == 2
    for annotation, mask in zip(sorted(masks, key=lambda mask: mask.label), true_masks(), strict=True):
        np.testing.assert_array_equal(annotation.image.astype(bool), mask)


def test_cvat_encodes_the_same_masks(result: Result) -> None:
    sdk = library("cvat_sdk.masks")
    import xml.etree.ElementTree as ET

    found = ET.fromstring(cvat([("a.png", result)])).findall("image/mask")
    for element, mask in zip(found, true_masks(), strict=True):
        left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
        points = [int(run) for run in element.get("rle").split(",")] + [
            left,
            top,
            left + width - 1,
            top + height - 1,
        ]
        assert points == [
            int(value) for value in sdk.encode_mask(mask, [left, top, left + width, top + height])
        ]


def test_label_studio_decodes_the_brush(result: Result) -> None:
    brush = library("label_studio_sdk.converter.brush")
    (task,) = label_studio([("a.png", result)])
    for region, mask in zip(task["predictions"][0]["result"], true_masks(), strict=True):
        rle = region["value"]["rle"]
        assert rle == brush.mask2rle(mask.astype(np.uint8) * 255)
        np.testing.assert_array_equal(np.reshape(brush.decode_rle(rle), (*SIZE, 4))[:, :, 3] > 0, mask)


def test_label_studio_takes_the_tasks(result: Result) -> None:
    library("label_studio_sdk")
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(
        '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
        '<Label value="person"/><Label value="dog"/></BrushLabels></View>'
    )
    (task,) = label_studio([("a.png", result)])
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction)
    prediction["result"][0]["value"]["brushlabels"] = ["cat"]
    assert not interface.validate_prediction(prediction)
