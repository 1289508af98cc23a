"""Masks come back from every format, and results go on to COCO, CVAT and Label Studio."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO

from app.api import responses
from maskserve import Instance, Result
from maskserve.export import coco_dataset, coco_results, cvat, image_ids, label_studio, pack, runs_by_row
from model.data import Category
from model.instances import Instances
from model.masks.paste import decode, paste
from model.network.architecture import Architecture
from model.zoo.model_file import describe

CATEGORIES = (Category(1, "person"), Category(18, "dog"))
MODEL = describe("fake", Architecture(classes=3), CATEGORIES)
SIZE = (120, 160)


def found() -> Instances:
    """A disc with a hole, a square that reaches out of the image, and a box with nothing in it."""
    y, x = (np.mgrid[:28, :28] - 13.5) / 14
    radius = np.hypot(x, y)
    ring = 1 / (1 + np.exp(-20 * np.minimum(0.9 - radius, radius - 0.4)))
    maps = torch.from_numpy(np.stack([ring, np.full((28, 28), 0.9), np.zeros((28, 28))])).float()
    boxes = torch.tensor([[20.0, 10.0, 110.0, 100.0], [130.0, 90.0, 160.0, 120.0], [0.0, 0.0, 9.0, 9.0]])
    return Instances(SIZE, boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 18, 1]), maps)


def result(masks: str = "rle") -> Result:
    return Result.from_document({"id": "x", **responses.document(MODEL, found(), masks)})


def true_masks() -> list[np.ndarray]:
    instances = found()
    return [decode(rle) for rle in paste(instances.probabilities, instances.boxes, SIZE)]


@pytest.mark.parametrize(("masks", "agreement"), [("rle", 1.0), ("png", 1.0), ("polygon", 0.98)])
def test_a_mask_is_the_same_in_every_format(masks: str, agreement: float) -> None:
    for instance, mask in zip(result(masks).instances, true_masks(), strict=True):
        ours = instance.mask
        assert ours.dtype == np.bool_
        assert ours.shape == SIZE
        union = (ours | mask.view(np.bool_)).sum()
        assert (ours & mask.view(np.bool_)).sum() >= agreement * union


def test_without_masks_there_is_none() -> None:
    (instance, *_) = result_without_masks().instances
    with pytest.raises(ValueError, match='masks="none"'):
        instance.mask  # noqa: B018 - a property that raises
    assert instance.bbox == (20, 10, 90, 90)


def result_without_masks() -> Result:
    instances = found()
    bare = Instances(SIZE, instances.boxes, instances.scores, instances.labels, None)
    return Result.from_document({"id": "x", **responses.document(MODEL, bare)})


def test_a_crop_is_the_mask_without_what_surrounds_it() -> None:
    for instance in result().instances:
        left, top, bitmap = instance.crop
        height, width = bitmap.shape
        whole = np.zeros(SIZE, np.bool_)
        whole[top : top + height, left : left + width] = bitmap
        np.testing.assert_array_equal(whole, instance.mask)
        assert not bitmap.size or (bitmap.any(0).all() or bitmap[0].any())


def test_a_crop_of_a_huge_image_takes_no_bitmap_of_it() -> None:
    size = (30_000, 30_000)
    # Three columns of four pixels at (20,000, 10,000), and a mask without a pixel.
    runs = [20_000 * 30_000 + 10_000, 4, 29_996, 4, 29_996, 4]
    runs.append(size[0] * size[1] - sum(runs))
    tracemalloc.start()
    crops = []
    for counts in (runs, [size[0] * size[1]]):
        segmentation = {"size": list(size), "counts": counts}
        record = {"category_id": 1, "category": "person", "score": 1, "bbox": (0, 0, 1, 1), "area": 1}
        crops.append(Instance.from_record({**record, "segmentation": segmentation}, size).crop)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (left, top, bitmap), nothing = crops
    assert (left, top, bitmap.shape, bool(bitmap.all())) == (20_000, 10_000, (4, 3), True)
    assert nothing.bitmap.size == 0
    assert peak < 2_000_000


def test_arrays_of_all_instances() -> None:
    every = result()
    assert every.boxes.tolist()[0] == [20, 10, 110, 100]
    assert every.scores.tolist() == [0.9, 0.8, 0.7]
    assert every.category_ids.tolist() == [1, 18, 1]
    np.testing.assert_array_equal(every.masks, np.stack(true_masks()).view(np.bool_))


@pytest.mark.parametrize("masks", ["rle", "png", "polygon"])
def test_pycocotools_loads_the_results(masks: str) -> None:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 3, "width": SIZE[1], "height": SIZE[0]}],
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(coco_results([("3.jpg", result(masks))], {"3.jpg": 3}))
    assert len(loaded.anns) == 3
    mask = loaded.annToMask(loaded.anns[1])
    assert (mask & true_masks()[0]).sum() >= 0.98 * (mask | true_masks()[0]).sum()


def test_pycocotools_loads_the_dataset() -> None:
    dataset = COCO()
    categories: list[dict[str, Any]] = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    dataset.dataset = coco_dataset(
        [("a.jpg", result()), ("b.jpg", result())], {"a.jpg": 1, "b.jpg": 2}, categories
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    assert len(dataset.getAnnIds(imgIds=2, catIds=18)) == 1
    assert coco.area(dataset.annToRLE(dataset.anns[1])) == true_masks()[0].sum()


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000397133.jpg", "37.png"], [397133, 37]),
        (["1.jpg", "1.png"], [1, 2]),
        (["b.jpg", "7.jpg"], [1, 2]),
        ([], []),
    ],
)
def test_files_called_by_their_number_keep_it(names: list[str], ids: list[int]) -> None:
    assert list(image_ids(names).values()) == ids


def test_cvat_masks_are_run_lengths_of_the_box_by_rows() -> None:
    image = ET.fromstring(cvat([("a & b.jpg", result())])).find("image")
    assert image.attrib == {"id": "0", "name": "a & b.jpg", "width": "160", "height": "120"}
    masks = image.findall("mask")
    assert [mask.get("label") for mask in masks] == ["person", "dog"]  # the empty one is left out
    for mask, true in zip(masks, true_masks(), strict=False):
        left, top, width, height = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in mask.get("rle").split(",")]
        bitmap = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        np.testing.assert_array_equal(bitmap, true[top : top + height, left : left + width])
        assert bitmap.sum() == true.sum()


def unpack(content: bytes) -> np.ndarray:
    """rle-pack, read as its specification (github.com/thi-ng/umbrella, packages/rle-pack) says."""
    bits = "".join(f"{byte:08b}" for byte in content)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if run else [take(word) for _ in range(length)]
    return np.array(values, np.uint8)


def test_label_studio_masks_unpack_to_four_bytes_a_pixel() -> None:
    (task,) = label_studio([("a.jpg", result())])
    assert task["data"] == {"image": "/data/local-files/?d=a.jpg"}
    regions = task["predictions"][0]["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [["person"], ["dog"], ["person"]]
    for region, true in zip(regions, true_masks(), strict=True):
        pixels = unpack(bytes(region["value"]["rle"])).reshape(*SIZE, 4)
        np.testing.assert_array_equal(pixels, np.repeat(true[:, :, None] * 255, 4, axis=2))


def test_runs_longer_than_a_field_are_parted() -> None:
    mask = np.ones((300, 300), np.bool_)
    assert (unpack(pack(mask)) == 255).all()
    assert runs_by_row(mask).tolist() == [0, 90_000]
