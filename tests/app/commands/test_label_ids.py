"""Results get the ids of the label file that they are measured against, or an error: never those of other images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.commands.label_ids import LabelIds
from model.data import DatasetError


def labels(path: Path, images: dict[Any, str], categories: dict[Any, str]) -> LabelIds:
    document = {
        "images": [{"id": number, "file_name": name} for number, name in images.items()],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (path / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    return LabelIds.read(path / "instances.json")


def test_images_are_found_by_name_in_whatever_order_the_labels_list_them(tmp_path: Path) -> None:
    ids = labels(tmp_path, {12: "scene_003.jpg", "a7": "sub\\Caf%C3%A9.jpg", 4: "images/scene_000.jpg"}, {})
    files = [Path("photos/scene_000.jpg"), Path("/x/sub/Café.jpg"), Path("scene_003.jpg")]
    assert list(ids.image_ids(files).values()) == [4, "a7", 12]


def test_same_name_in_two_folders_is_told_apart_by_the_folder(tmp_path: Path) -> None:
    ids = labels(tmp_path, {1: "a/1.jpg", 2: "b/1.jpg"}, {})
    assert ids.image_ids([Path("photos/b/1.jpg")]) == {Path("photos/b/1.jpg"): 2}
    with pytest.raises(DatasetError, match="lists several images of this name"):
        ids.image_ids([Path("photos/1.jpg")])


def test_two_files_are_not_the_same_image(tmp_path: Path) -> None:
    ids = labels(tmp_path, {7: "val/1.jpg"}, {})
    with pytest.raises(DatasetError, match=r"train/1\.jpg and .*val/1\.jpg would both be the image 7"):
        ids.image_ids([Path("photos/train/1.jpg"), Path("photos/val/1.jpg")])


def test_image_that_the_labels_do_not_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"b\.jpg: .*instances\.json does not list this image"):
        labels(tmp_path, {1: "a.jpg"}, {}).image_ids([Path("b.jpg")])


def test_categories_get_the_labels_ids_and_those_unknown_to_them_are_dropped(tmp_path: Path) -> None:
    ids = labels(tmp_path, {1: "a.jpg"}, {70: "cat", 1: "dog"})
    records = [{"category_id": n, "category": name} for n, name in ((1, "cat"), (2, "dog"), (70, "cow"))]
    assert [record["category_id"] for record in ids.rename(records)] == [70, 1]


def test_categories_that_the_labels_lack_are_named(tmp_path: Path) -> None:
    ids = labels(tmp_path, {1: "a.jpg"}, {70: "cat", 1: "dog"})
    assert ids.describe_missing([{"name": "cat"}, {"name": "dog"}]) is None
    others = [{"name": name} for name in ("cat", "a", "b", "c", "d", "e", "f")]
    assert (ids.describe_missing(others) or "").endswith("no such categories: a, b, c, d, e and 1 more")
    with pytest.raises(DatasetError, match=r"has none of the model's categories: Cat"):
        ids.describe_missing([{"name": "Cat"}])


def test_file_that_holds_no_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DatasetError, match="not COCO's instances format"):
        LabelIds.read(tmp_path / "results.json")
