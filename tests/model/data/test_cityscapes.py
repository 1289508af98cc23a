"""Cityscapes' folders as a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from model.data import DatasetError
from model.data.cityscapes import Cityscapes
from model.data.opening import open_dataset

if TYPE_CHECKING:
    from pathlib import Path


def street(*regions: tuple[int, int, int, int, int], size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """An instance map of road (7) with rectangles (value, left, top, right, bottom)."""
    ids = np.full(size, 7, np.int32)
    for value, x0, y0, x1, y1 in regions:
        ids[y0:y1, x0:x1] = value
    return ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ids = street((26001, 10, 10, 40, 30), (26002, 50, 10, 80, 30), (24000, 0, 40, 8, 60), (26, 90, 10, 120, 40),
                 (29001, 60, 60, 90, 90))  # fmt: skip
    for split, city in (("train", "aachen"), ("val", "ulm")):
        photos, maps = (tmp_path / kind / split / city for kind in ("leftImg8bit", "gtFine"))
        photos.mkdir(parents=True)
        maps.mkdir(parents=True)
        Image.new("RGB", (128, 96), "grey").save(photos / f"{city}_000000_000019_leftImg8bit.png")
        Image.fromarray(ids.astype(np.uint16)).save(maps / f"{city}_000000_000019_gtFine_instanceIds.png")
    return tmp_path


def test_objects_of_the_eight_classes_become_samples(root: Path) -> None:
    dataset = open_dataset(root)
    assert isinstance(dataset, Cityscapes)
    assert len(dataset) == 1
    assert dataset.size(0) == (96, 128)
    sample = dataset[0]
    assert sample.labels.tolist() == [24, 26, 26]  # neither the group of cars nor the caravan
    assert sample.boxes.tolist() == [[0, 40, 8, 60], [10, 10, 40, 30], [50, 10, 80, 30]]
    assert np.asarray(sample.masks).sum((1, 2)).tolist() == [160, 600, 600]
    assert dataset.name(0) == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"


def test_groups_are_crowds_to_coco(root: Path) -> None:
    dataset = Cityscapes(root, "val")
    annotations = dataset.annotations(dataset[0])
    assert [a["iscrowd"] for a in annotations] == [0, 0, 0, 1]
    assert annotations[3]["category_id"] == 26
    assert annotations[3]["bbox"] == [90, 10, 30, 30]
    assert annotations[3]["area"] == 900


def test_split_that_is_not_there_is_refused_with_those_that_are(root: Path) -> None:
    with pytest.raises(DatasetError, match="splits here: train, val"):
        Cityscapes(root, "test")


def test_photo_without_an_instance_map_is_refused_by_name(root: Path) -> None:
    next((root / "gtFine" / "train").rglob("*.png")).unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 1 photos have no instance map.*aachen_000000_000019_gtFine"
    ):
        Cityscapes(root)


def test_map_of_another_size_is_refused(root: Path) -> None:
    path = next((root / "gtFine" / "train").rglob("*.png"))
    Image.new("I;16", (64, 48)).save(path)
    with pytest.raises(DatasetError, match="128×96 pixels, but its instance map has 64×48"):
        Cityscapes(root)[0]
