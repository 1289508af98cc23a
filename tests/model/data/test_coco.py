import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from model.data import DatasetError
from model.data.coco import CocoFolder, open_folder
from model.data.shapes import Shapes

SQUARE = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]


def document(**changes):
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 10, 10, 10], "segmentation": SQUARE}
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write(content, size=(60, 40)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", size, "white").save(tmp_path / "images" / "a.png")
        path = tmp_path / "instances.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def annotated(**annotation):
    return document(annotations=[{"id": 1, "image_id": 7, "category_id": 5, **annotation}])


def test_polygon_becomes_mask_box_and_label(write):
    sample = open_folder(write(document()))[0]
    assert sample.image_id == 7
    assert sample.pixels.shape == (40, 60, 3)
    assert sample.masks.shape == (1, 40, 60)
    assert sample.masks.areas().sum() == 100
    assert sample.boxes.tolist() == [[10, 10, 20, 20]]
    assert sample.labels.tolist() == [5]


def test_categories_come_in_the_order_of_their_ids(write):
    assert [(c.id, c.name) for c in open_folder(write(document())).categories] == [(5, "dog"), (9, "cat")]


@pytest.mark.parametrize("kind", ["compressed", "uncompressed"])
def test_both_kinds_of_rle_are_read(write, kind):
    bitmap = np.zeros((40, 60), np.uint8, order="F")
    bitmap[3:9, 50:58] = 1
    rle = coco_mask.encode(bitmap)
    compressed = {"size": [40, 60], "counts": rle["counts"].decode()}
    flat = np.flatnonzero(np.diff(np.concatenate([[0], bitmap.ravel("F"), [2]])) != 0)
    runs = np.diff(np.concatenate([[0], flat])).tolist()
    segmentation = compressed if kind == "compressed" else {"size": [40, 60], "counts": runs}
    sample = open_folder(write(annotated(segmentation=segmentation)))[0]
    assert np.array_equal(sample.masks[0], bitmap)


def test_crowds_are_not_trained_on_but_evaluated(write):
    folder = open_folder(write(annotated(segmentation=SQUARE, iscrowd=1)))
    sample = folder[0]
    assert len(sample.labels) == 0
    assert [a["iscrowd"] for a in folder.annotations(sample)] == [1]


def test_objects_without_any_area_are_left_out(write):
    sample = open_folder(write(annotated(segmentation=[[1, 1, 1, 1, 1, 1]])))[0]
    assert len(sample.labels) == 0


def test_missing_area_is_counted_for_the_evaluation(write):
    folder = open_folder(write(annotated(segmentation=SQUARE)))
    assert folder.annotations(folder[0])[0]["area"] == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "not JSON", id="cut off"),
        pytest.param("[]", "JSON object", id="a list"),
        pytest.param({"images": []}, "not COCO's instances format", id="no categories"),
        pytest.param(document(images=[]), "names no images", id="no images"),
        pytest.param(
            annotated(segmentation=SQUARE, category_id=6), "category_id is 6", id="unknown category"
        ),
        pytest.param(
            document(images=[{"id": 7, "file_name": "b.png", "height": 40, "width": 60}]),
            r"missing image file: 1.*image 7: file_name: b.png is not in",
            id="missing image",
        ),
    ],
)
def test_unusable_file_is_refused_by_name_when_it_is_opened(write, content, message):
    path = write(content)
    with pytest.raises(DatasetError, match=message) as refused:
        open_folder(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        pytest.param(
            {"segmentation": {"size": [40, 60]}},
            "unreadable segmentation: 1.*annotation 1 of image 7 .a.png.: segmentation has null for counts",
            id="no counts",
        ),
        pytest.param(
            {"segmentation": {"size": [2, 2], "counts": [0, 4]}}, "a mask of 2×2 pixels", id="other size"
        ),
    ],
)
def test_bad_segmentation_names_its_annotation(write, annotation, message):
    with pytest.raises(DatasetError, match=message):
        open_folder(write(annotated(**annotation)))[0]


def test_image_of_another_size_than_annotated_is_refused(write):
    with pytest.raises(DatasetError, match="30×20 pixels, annotated as 60×40"):
        open_folder(write(document(), size=(30, 20)))[0]


def test_damaged_image_is_refused_by_name(write):
    path = write(document())
    (path.parent / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DatasetError, match=r"a\.png"):
        open_folder(path)[0]


def test_folder_without_annotations_says_what_is_needed(tmp_path):
    with pytest.raises(DatasetError, match=r"instances\.json, or exactly one JSON file in annotations/"):
        open_folder(tmp_path)


def test_exported_shapes_read_back_as_they_were_drawn(tmp_path):
    shapes = Shapes(seed=11, length=3, sides=(96, 128))
    shapes.export(tmp_path)
    folder = open_folder(tmp_path)
    assert folder.categories == shapes.categories
    for index in range(3):
        drawn, read = shapes[index], folder[index]
        assert folder.size(index) == shapes.size(index)
        assert np.array_equal(read.masks, drawn.masks)
        assert np.array_equal(read.boxes, drawn.boxes)
        assert np.array_equal(read.labels, drawn.labels)
        assert np.abs(read.pixels.astype(int) - drawn.pixels).mean() < 6  # JPEG in between


COCO128 = Path(__file__).parents[4] / "shared" / "data" / "coco" / "coco128"


@pytest.mark.skipif(not COCO128.is_dir(), reason="the COCO subset in shared/data is not here")
def test_real_coco_annotations_are_read():
    folder = CocoFolder(COCO128 / "annotations" / "instances_train2017.json", COCO128 / "images")
    assert len(folder) > 100
    for index in range(0, len(folder), 16):
        sample = folder[index]
        truth = [a for a in folder.annotations(sample) if not a["iscrowd"]]
        assert len(sample.labels) == len(truth)
        areas = [a["area"] for a in truth]
        assert np.allclose(sample.masks.areas(), areas, rtol=0.15, atol=30)
