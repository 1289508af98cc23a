"""`maskserve data check`: every kind of damage is counted, with an example, and nothing of it reaches training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from app.cli.main import cli
from model.data import DatasetError
from model.data.check import check
from model.data.coco import open_folder
from model.data.shapes import Shapes
from model.data.subset import take

if TYPE_CHECKING:
    from pathlib import Path

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]
GOOD = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 10, 10], "segmentation": SQUARE}


def folder(path: Path, *annotations: Any, images: Any = None) -> Path:
    """A labelled folder of one image of 60×40 pixels, or of the images that are listed."""
    (path / "images").mkdir(parents=True)
    Image.new("RGB", (60, 40), "white").save(path / "images" / "a.png")
    document = {
        "images": images or [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [{"id": n, **a} if isinstance(a, dict) else a for n, a in enumerate(annotations, 1)],
        "categories": [{"id": 5, "name": "dog"}],
    }
    (path / "instances.json").write_text(json.dumps(document))
    return path


def test_sound_folder_has_no_findings(tmp_path: Path) -> None:
    found = check(folder(tmp_path, GOOD, {**GOOD, "iscrowd": 1}))
    assert (found.images, found.objects, found.crowds) == (1, 1, 1)
    assert found.per_category == {"dog": 1}
    assert found.counts == {}


UNUSABLE = [
    pytest.param({**GOOD, "category_id": 6}, "unknown category", "category_id is 6", id="category"),
    pytest.param({**GOOD, "image_id": 9}, "unknown image", "image_id is 9", id="image"),
    pytest.param({"image_id": 1}, "no annotation", "category_id", id="no category"),
    pytest.param(7, "no annotation", "not 7", id="a number"),
    pytest.param({**GOOD, "segmentation": "x"}, "unreadable segmentation", 'is "x"', id="text"),
    pytest.param(
        {**GOOD, "segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "unreadable segmentation", "no pairs", id="odd"
    ),
    pytest.param(
        {**GOOD, "segmentation": [[1, 2, 3, 4, 5, None]]}, "unreadable segmentation", "finite", id="null"
    ),
    pytest.param(
        {**GOOD, "segmentation": [[1, 2, 3, 4, 5, float("nan")]]},
        "unreadable segmentation",
        "finite",
        id="NaN",
    ),
    pytest.param(
        {**GOOD, "segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "unreadable segmentation", "1e\\+12", id="far away"
    ),
    pytest.param(
        {**GOOD, "segmentation": {"size": [40, 60], "counts": "}"}},
        "unreadable segmentation",
        "run",
        id="no RLE",
    ),
    pytest.param(
        {**GOOD, "segmentation": {"size": [40, 60], "counts": "é"}},
        "unreadable segmentation",
        "ASCII",
        id="not ASCII",
    ),
    pytest.param(
        {**GOOD, "segmentation": {"size": [40, 60], "counts": [5, 6]}},
        "unreadable segmentation",
        "add up",
        id="short RLE",
    ),
    pytest.param(
        {**GOOD, "segmentation": {"size": [2, 2], "counts": [0, 4]}},
        "mask of another size",
        "2×2",
        id="size",
    ),
]


@pytest.mark.parametrize(("annotation", "kind", "detail"), UNUSABLE)
def test_annotation_that_cannot_be_used_is_counted_refused_and_skipped(
    tmp_path: Path, annotation: Any, kind: str, detail: str
) -> None:
    path = folder(tmp_path, GOOD, annotation)
    found = check(path)
    assert found.counts == {kind: 1}
    assert found.errors == 1
    with pytest.raises(DatasetError, match=f"{kind}: 1.*{detail}.*data check"):
        open_folder(path)
    opened = open_folder(path, skip_damaged=True)
    assert opened.left_out == 1
    sample = opened[0]
    assert sample.labels.tolist() == [5]
    assert [a["id"] for a in opened.annotations(sample)] == [1]


SUSPECT = [
    pytest.param({**GOOD, "segmentation": [[1, 1, 1, 1, 1, 1]]}, "no area", 1, id="a point"),
    pytest.param({**GOOD, "segmentation": [[1, 1, 2, 2]]}, "no area", 1, id="a line"),
    pytest.param({"image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]}, "no segmentation", 1, id="a box"),
    pytest.param({**GOOD, "segmentation": [[70, 10, 90, 10, 90, 20]]}, "outside the image", 1, id="outside"),
    pytest.param({**GOOD, "bbox": [40, 30, 10, 10]}, "box and mask apart", 2, id="apart"),
    pytest.param({**GOOD, "id": 1}, "annotation id used twice", 2, id="id"),
]


@pytest.mark.parametrize(("annotation", "kind", "objects"), SUSPECT)
def test_odd_annotation_is_reported_and_does_no_harm(
    tmp_path: Path, annotation: Any, kind: str, objects: int
) -> None:
    path = folder(tmp_path, GOOD, annotation)
    found = check(path)
    assert (found.counts, found.errors) == ({kind: 1}, 0)
    opened = open_folder(path)
    assert len(opened[0].labels) == objects
    for filled in opened.annotations(opened[0]):
        assert len(filled["bbox"]) == 4
        assert coco_mask.decode(filled["segmentation"]).shape == (40, 60)


def test_missing_damaged_and_resized_images_are_told_apart(tmp_path: Path) -> None:
    names = ["a.png", "gone.png", "cut.png", "small.png", "empty.png"]
    images = [{"id": n, "file_name": name, "height": 40, "width": 60} for n, name in enumerate(names, 1)]
    path = folder(tmp_path, GOOD, images=[*images, {**images[0], "file_name": "b.png"}])
    whole = (path / "images" / "a.png").read_bytes()
    (path / "images" / "cut.png").write_bytes(whole[:60])
    (path / "images" / "empty.png").write_bytes(b"")
    Image.new("RGB", (30, 20)).save(path / "images" / "small.png")
    found = check(path, pixels=True)
    assert found.counts == {
        "missing image file": 1,
        "unreadable image": 2,
        "image of another size than annotated": 1,
        "image id used twice": 1,
        "image without objects": 1,
    }
    assert (
        "small.png: 30×20 pixels, annotated as 60×40"
        in found.examples["image of another size than annotated"][0]
    )
    assert check(path).counts["unreadable image"] == 1  # the header of the one that is cut short is whole


def test_boxes_alone_can_be_learned_where_only_boxes_are(tmp_path: Path) -> None:
    path = folder(tmp_path, {"image_id": 1, "category_id": 5, "bbox": [10.4, 4.6, 20, 10], "area": 200})
    assert len(open_folder(path)[0].labels) == 0
    sample = open_folder(path, boxes=True)[0]
    assert sample.boxes.tolist() == [[10, 5, 30, 15]]
    assert sample.masks.areas().sum() == 200


def test_command_prints_counts_with_examples_and_exits_with_1_for_errors(tmp_path: Path) -> None:
    path = folder(tmp_path, GOOD, *[{**GOOD, "category_id": 6}] * 7, {**GOOD, "segmentation": []})
    result = CliRunner().invoke(cli, ["data", "check", str(path)])
    assert result.exit_code == 1
    assert "1 images, 2 objects, 0 crowds" in result.stdout
    assert "7 × unknown category (cannot be used)" in result.stdout
    assert "annotation 2 of image 1 (a.png): category_id is 6" in result.stdout
    assert "and 2 more" in result.stdout
    assert "1 × no segmentation (left out of training" in " ".join(result.stdout.split())
    document = json.loads(CliRunner().invoke(cli, ["data", "check", str(path), "--json"]).stdout)
    assert document["errors"] == 7
    assert document["found"][0]["kind"] == "unknown category"
    nowhere = CliRunner().invoke(cli, ["data", "check", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 1
    assert "cannot be read" in nowhere.stderr


def test_subset_holds_the_first_images_with_objects_of_the_categories(tmp_path: Path) -> None:
    Shapes(seed=3, length=6, sides=(64, 96)).export(tmp_path / "all")
    names = sorted({c.name for c in open_folder(tmp_path / "all").categories})
    arguments = ["data", "take", str(tmp_path / "all"), str(tmp_path / "few"), "--count", "2"]
    result = CliRunner().invoke(cli, [*arguments, "--categories", ",".join(names[:4])])
    assert result.exit_code == 0, result.stderr
    few, whole = open_folder(tmp_path / "few"), open_folder(tmp_path / "all")
    assert len(few) == 2
    assert {c.name for c in few.categories} <= set(names[:4])
    original = {whole.name(n): n for n in range(len(whole))}
    for index in range(2):
        theirs = whole[original[few.name(index)]]
        kept = np.isin(theirs.labels, [c.id for c in few.categories])
        assert np.array_equal(few[index].masks, theirs.masks[kept])
    arguments[3] = str(tmp_path / "none")
    wrong = CliRunner().invoke(cli, [*arguments, "--categories", "dragon"])
    assert wrong.exit_code == 1
    assert "no category 'dragon'" in wrong.stderr


def test_subsets_one_after_the_other_have_every_image_once(tmp_path: Path) -> None:
    Shapes(seed=3, length=4, sides=(64, 96)).export(tmp_path / "all")
    whole = open_folder(tmp_path / "all")
    names = []
    for skip, count in ((0, 1), (1, 2), (3, 9)):
        out = tmp_path / f"from {skip}"
        take(tmp_path / "all", out, count, skip=skip)
        part = open_folder(out)
        names += [part.name(n) for n in range(len(part))]
    assert sorted(names) == sorted(whole.name(n) for n in range(len(whole)) if len(whole[n].labels))
    with pytest.raises(DatasetError, match="nothing is left after 4 images"):
        take(tmp_path / "all", tmp_path / "none", 1, skip=4)


def test_subset_never_writes_outside_its_folder(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "../out.png", "height": 40, "width": 60}]
    path = folder(tmp_path / "data", GOOD, images=images)
    Image.new("RGB", (60, 40)).save(tmp_path / "data" / "out.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "out.png")
    result = CliRunner().invoke(cli, ["data", "take", str(path), str(tmp_path / "few")])
    assert result.exit_code == 1
    assert "leads out of the images' folder" in result.stderr


def test_drawn_folder_can_be_trained_on(tmp_path: Path) -> None:
    command = ["data", "draw", str(tmp_path / "scenes"), "--count", "2", "--sides", "64", "96"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert check(tmp_path / "scenes").errors == 0
    assert len(open_folder(tmp_path / "scenes")) == 2
    # Labels are never written over.
    labels = (tmp_path / "scenes" / "instances.json").read_bytes()
    for again in (command, ["data", "take", str(tmp_path / "scenes"), str(tmp_path / "scenes")]):
        refused = CliRunner().invoke(cli, again)
        assert refused.exit_code == 1
        assert "is there already" in refused.stderr
    assert (tmp_path / "scenes" / "instances.json").read_bytes() == labels
