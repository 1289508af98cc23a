"""Keypoints of labelled folders and drawn people, and what changes of images make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model.data import Keypoints, Sample
from model.data.augment import copy_paste, flip, jitter_scale, rotate
from model.data.coco import open_folder
from model.data.figures import Figures
from model.data.person import PERSON_KEYPOINTS
from model.data.subset import take

if TYPE_CHECKING:
    from pathlib import Path

NAMED = Keypoints(("nose", "left_hand", "right_hand"), ((0, 1), (0, 2)))
CATEGORY = {"id": 1, "name": "person", "keypoints": list(NAMED.names), "skeleton": [[1, 2], [1, 3]]}
POINTS = [12, 14, 2, 0, 0, 0, 30, 20, 1]
SQUARE = {"category_id": 1, "image_id": 1, "iscrowd": 0, "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]]}


def folder(path: Path, *annotations: dict[str, Any], categories: list[Any] | None = None) -> Path:
    (path / "images").mkdir(parents=True)
    Image.new("RGB", (60, 50), "white").save(path / "images" / "1.png")
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 50}],
        "annotations": [{"id": n, **SQUARE, **a} for n, a in enumerate(annotations, 1)],
        "categories": categories or [CATEGORY],
    }
    (path / "instances.json").write_text(json.dumps(document))
    return path


def test_a_folder_gives_them_to_samples_and_to_the_evaluation(tmp_path: Path) -> None:
    data = open_folder(folder(tmp_path, {"keypoints": POINTS, "num_keypoints": 2}, {}))
    assert data.keypoints == NAMED
    sample = data[0]
    assert sample.keypoints is not None
    assert sample.keypoints.tolist() == [[[12, 14, 2], [0, 0, 0], [30, 20, 1]], [[0, 0, 0]] * 3]
    first, second = data.annotations(sample)
    assert (first["keypoints"], first["num_keypoints"]) == (POINTS, 2)
    assert second["num_keypoints"] == 0


def test_the_digest_follows_them(tmp_path: Path) -> None:
    moved = [13, *POINTS[1:]]
    one, other = (folder(tmp_path / str(n), {"keypoints": p}) for n, p in enumerate((POINTS, moved)))
    assert open_folder(one).digest() != open_folder(other).digest()


@pytest.mark.parametrize("damaged", [[1, 2, 2], [1, 2, 3] * 3, ["x", 1, 2] * 3, "none"])
def test_lists_that_are_none_are_not_labelled_and_said_so(tmp_path: Path, damaged: Any) -> None:
    data = open_folder(folder(tmp_path, {"keypoints": damaged}, {"keypoints": POINTS}))
    sample = data[0]
    assert sample.keypoints is not None
    assert not sample.keypoints[0].any()
    (notice,) = data.notices
    assert "left out keypoints" in notice
    assert "annotation 1 of image 1 (1.png)" in notice


@pytest.mark.parametrize(
    "annotation",
    [{}, {"keypoints": [0] * 9}, {"keypoints": [5, 5, 0] * 3}, {"keypoints": POINTS, "iscrowd": 1}],
    ids=["none", "zeros", "not labelled", "a crowd"],
)
def test_names_without_a_labelled_keypoint_are_left_out(tmp_path: Path, annotation: dict[str, Any]) -> None:
    data = open_folder(folder(tmp_path, annotation))
    assert data.keypoints is None
    assert data[0].keypoints is None
    assert "keypoints" not in data.annotations(data[0])[0]
    (notice,) = data.notices
    assert notice.endswith("left out the keypoints, of which no object has a labelled one")


def test_categories_with_different_ones_are_learned_without(tmp_path: Path) -> None:
    cat = {"id": 2, "name": "cat", "keypoints": ["nose", "tail"]}
    data = open_folder(folder(tmp_path, {"keypoints": POINTS}, categories=[CATEGORY, cat]))
    assert data.keypoints is None
    assert data[0].keypoints is None
    assert "cat, person have different ones" in data.notices[0]


@pytest.mark.parametrize("skeleton", [[[0, 1], [0, 2]], [[2, 1, 3]], [[1, 4]], "none"])
def test_a_bad_skeleton_costs_the_lines_alone(tmp_path: Path, skeleton: Any) -> None:
    data = open_folder(
        folder(tmp_path, {"keypoints": POINTS}, categories=[{**CATEGORY, "skeleton": skeleton}])
    )
    assert data.keypoints == Keypoints(NAMED.names)
    assert data[0].keypoints is not None
    (notice,) = data.notices
    assert "left out the lines between the keypoints of categories[0], whose skeleton is not a list" in notice


def test_a_part_of_a_folder_keeps_them(tmp_path: Path) -> None:
    take(folder(tmp_path / "all", {"keypoints": POINTS}), tmp_path / "part", 1)
    data = open_folder(tmp_path / "part")
    assert data.keypoints == NAMED
    assert data.annotations(data[0])[0]["keypoints"] == POINTS


@pytest.mark.parametrize(
    ("names", "pointed"), [(None, {"person": True, "dog": False}), (["dog"], {"dog": False})]
)
def test_a_part_names_those_of_categories_that_have_some(
    tmp_path: Path, names: list[str] | None, pointed: dict[str, bool]
) -> None:
    categories = [CATEGORY, {"id": 2, "name": "dog"}]
    both = folder(tmp_path / "all", {"keypoints": POINTS}, {"category_id": 2}, categories=categories)
    take(both, tmp_path / "part", 1, names)
    document = json.loads((tmp_path / "part" / "instances.json").read_text())
    assert {category["name"]: "keypoints" in category for category in document["categories"]} == pointed


def test_the_other_side_is_told_by_names() -> None:
    assert NAMED.flip_indices() == (0, 2, 1)
    assert PERSON_KEYPOINTS.flip_indices()[:5] == (0, 2, 1, 4, 3)
    # What has no counterpart stays.
    assert Keypoints(("left_fin", "tail")).flip_indices() == (0, 1)


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (
            (
                "left_eye_left_corner",
                "left_eye_right_corner",
                "right_eye_left_corner",
                "right_eye_right_corner",
            ),
            (3, 2, 1, 0),
        ),
        (("Left_Front_wheel", "Right_Front_wheel", "Left_Back_wheel", "Right_Back_wheel"), (1, 0, 3, 2)),
        (("LEFT_HIP", "RIGHT_HIP", "tail"), (1, 0, 2)),
        (("bright_left_lamp", "bright_right_lamp", "bright_lamp"), (1, 0, 2)),
        (("leftEye", "rightEye", "BrightEarLeft", "BrightEarRight"), (1, 0, 3, 2)),
        (("lefteye", "righteye"), (1, 0)),
        (("left eye", "right eye", "left", "right"), (1, 0, 3, 2)),
        # The first two have the same counterpart.
        (("left_lefteye", "right_righteye", "right_lefteye"), (2, 1, 0)),
    ],
)
def test_each_keypoint_has_one_other_side(names: tuple[str, ...], mirrored: tuple[int, ...]) -> None:
    own = Keypoints(names)
    assert own.flip_indices() == mirrored
    places = np.arange(len(names), dtype=np.float32) + 10.5
    points = np.stack([places, places, np.full(len(names), 2, np.float32)], 1)[None]
    sample = replace(dotted(), keypoints=points, named=own)
    again = flip(flip(sample)).keypoints
    assert again is not None
    assert again.tolist() == points.tolist()


def dotted() -> Sample:
    """A sample whose keypoints lie on pixels of their own colours: red, green and blue."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    places = [(10, 5), (20, 30), (50, 12)]
    for channel, (x, y) in enumerate(places):
        pixels[y - 1 : y + 2, x - 1 : x + 2, channel] = 255
    points = np.array([[[x + 0.5, y + 0.5, 2] for x, y in places]], np.float32)
    masks = np.ones((1, 40, 60), np.uint8)
    boxes = np.array([[0, 0, 60, 40]], np.float32)
    return Sample(1, pixels, boxes, np.array([1]), masks, None, points, NAMED)


def colours(sample: Sample) -> list[int]:
    """Which colour each labelled keypoint lies on; -1 for the others."""
    assert sample.keypoints is not None
    return [
        int(sample.pixels[int(y), int(x)].argmax()) if v else -1 for x, y, v in sample.keypoints[0].tolist()
    ]


def test_mirrored_images_exchange_left_and_right() -> None:
    mirrored = flip(dotted())
    assert colours(mirrored) == [0, 2, 1]
    again = flip(mirrored).keypoints
    assert again is not None
    assert again.tolist() == dotted().keypoints.tolist()


def test_what_is_not_labelled_stays_so_in_mirrored_images() -> None:
    sample = dotted()
    assert sample.keypoints is not None
    points = sample.keypoints.copy()
    points[0, 1] = 0
    mirrored = flip(replace(sample, keypoints=points)).keypoints
    assert mirrored is not None
    assert mirrored[0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_images_take_them_along(quarters: int) -> None:
    assert colours(rotate(dotted(), quarters)) == [0, 1, 2]


def test_jittered_images_take_them_along_and_drop_what_is_cut_off() -> None:
    seen = set()
    for seed in range(30):
        jittered = jitter_scale(dotted(), np.random.default_rng(seed), (0.9, 2.5), 64)
        found = colours(jittered)
        assert all(colour in (-1, place) for place, colour in enumerate(found))
        seen.add(tuple(found))
    assert (0, 1, 2) in seen
    assert any(-1 in found for found in seen)


def test_pasted_objects_bring_theirs() -> None:
    for seed in range(20):
        pasted = copy_paste(dotted(), dotted(), np.random.default_rng(seed))
        assert pasted.keypoints is not None
        assert len(pasted.keypoints) == len(pasted.labels)


# Drawn people


def test_a_seed_always_draws_the_same_people() -> None:
    first, second = (Figures(seed=5, length=3, sides=(96, 128))[2] for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.keypoints, second.keypoints)


def test_visible_keypoints_lie_on_their_person_and_hidden_ones_do_not() -> None:
    scenes, counts = Figures(seed=5, length=25, sides=(128, 200)), np.zeros(3, int)
    for index in range(len(scenes)):
        sample = scenes[index]
        assert sample.keypoints is not None
        assert sample.pixels.shape[:2] == scenes.size(index)
        for points, mask in zip(sample.keypoints, np.asarray(sample.masks), strict=True):
            for place, (x, y, v) in enumerate(points.tolist()):
                counts[int(v)] += 1
                if v == 0:
                    assert (x, y) == (0, 0)
                elif v == 2:
                    assert mask[int(y), int(x)]
                elif place > 2:  # nose and eyes are hidden by the head itself where somebody turns away
                    assert not mask[int(y), int(x)]
    assert (counts > 5).all()
    assert counts[2] > counts[1]


def test_a_folder_of_drawn_people_reads_as_it_was_drawn(tmp_path: Path) -> None:
    scenes = Figures(seed=5, length=2, sides=(96, 128))
    scenes.export(tmp_path)
    data = open_folder(tmp_path)
    assert data.keypoints == PERSON_KEYPOINTS
    for index in range(2):
        drawn, read = scenes[index], data[index]
        np.testing.assert_allclose(read.keypoints, drawn.keypoints, atol=0.006)
        assert np.array_equal(np.asarray(read.masks), drawn.masks)
