"""Cityscapes' instance AP. The expected figures come from its official script."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.cityscapes import CATEGORIES
from model.evaluation.cityscapes import CityscapesAp
from model.instances import Instances

ALL = {category.id: category.id for category in CATEGORIES}


def street(*regions: tuple[int, int, int, int, int], size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """An instance map of road (7) with rectangles (value, left, top, right, bottom)."""
    ids = np.full(size, 7, np.int32)
    for value, x0, y0, x1, y1 in regions:
        ids[y0:y1, x0:x1] = value
    return ids


def detect(*boxes: tuple[int, float, int, int, int, int], size: tuple[int, int] = (96, 128)) -> Instances:
    """Detections that fill their boxes (label, score, left, top, right, bottom)."""
    return Instances(
        size,
        torch.tensor([b[2:] for b in boxes], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([b[1] for b in boxes]),
        torch.tensor([b[0] for b in boxes], dtype=torch.int64),
        torch.ones(len(boxes), 28, 28),
    )


def test_perfect_masks_score_one_and_categories_without_objects_do_not_count() -> None:
    cityscapes = CityscapesAp()
    cityscapes.add(
        street((26001, 10, 10, 40, 30), (24000, 50, 50, 70, 80)),
        detect((26, 0.9, 10, 10, 40, 30), (24, 0.8, 50, 50, 70, 80)),
        ALL,
    )
    scores = cityscapes.scores()
    # A pasted mask is a little smaller than its box, as in torchvision: at an overlap of 0.95 it does not count.
    assert (scores.ap, scores.ap50) == (pytest.approx(0.9), 1.0)
    assert scores.per_category["car"] == (pytest.approx(0.9), 1.0)
    assert np.isnan(scores.per_category["bus"][0])


def test_categories_of_the_model_are_translated_and_foreign_ones_ignored() -> None:
    cityscapes = CityscapesAp()
    cityscapes.add(
        street((26001, 10, 10, 40, 30)), detect((3, 0.9, 10, 10, 40, 30), (9, 0.9, 0, 0, 9, 9)), {3: 26}
    )
    assert cityscapes.scores().per_category["car"][1] == 1.0


def test_second_detection_of_the_same_object_is_an_error() -> None:
    cityscapes = CityscapesAp()
    cityscapes.add(
        street((26001, 10, 10, 40, 30), (26002, 60, 10, 90, 30)),
        detect((26, 0.9, 10, 10, 40, 30), (26, 0.8, 10, 10, 40, 30), (26, 0.7, 60, 10, 90, 30)),
        ALL,
    )
    # Recall 0.5 at precision 1, recall 1 at 2/3; steps as the official script weights them.
    assert cityscapes.scores().ap50 == pytest.approx(2 / 3 * 0.25 + 0.5 * 0.25 + 1.0 * 0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("region", "box"),
    [
        pytest.param((26, 60, 10, 90, 30), (60, 10, 90, 30), id="on a group of its own class"),
        pytest.param((29, 60, 10, 90, 30), (60, 10, 90, 30), id="on void"),
        pytest.param((26002, 60, 10, 69, 19), (60, 10, 70, 21), id="on an object of under 100 pixels"),
    ],
)
def test_detections_on_groups_void_and_small_objects_are_no_errors(
    region: tuple[int, int, int, int, int], box: tuple[int, int, int, int]
) -> None:
    ids = street((26001, 10, 10, 40, 30), region)
    right, other = (26, 0.5, 10, 10, 40, 30), (26, 0.9, *box)
    cityscapes = CityscapesAp()
    cityscapes.add(ids, detect(right, other), ALL)
    assert cityscapes.scores().per_category["car"][1] == 1.0
    without_region = CityscapesAp()
    without_region.add(np.where(ids == region[0], 7, ids), detect(right, other), ALL)
    assert without_region.scores().per_category["car"][1] < 1.0


def random_street(rng: np.random.Generator) -> tuple[np.ndarray, Instances]:
    ids = street()
    for number in range(8):
        label = int(rng.choice([24, 26, 26, 29, 33]))
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 8, 8), (110, 80, 40, 40)))
        ids[y : y + h, x : x + w] = label if rng.random() < 0.2 else 1000 * label + number
    boxes = []
    for _ in range(10):
        value = int(rng.choice([v for v in np.unique(ids) if v >= 24]))
        ys, xs = np.nonzero(ids == value)
        label = value // 1000 if value >= 1000 else value
        corners = np.array([xs.min(), ys.min(), xs.max() + 2, ys.max() + 2]) + rng.integers(-1, 2, 4)
        x0, y0, x1, y1 = (int(v) for v in np.clip(corners, 0, [128, 96, 128, 96]))
        boxes.append((26 if label == 29 else label, round(float(rng.random()), 1), x0, y0, x1, y1))
    return ids, detect(*boxes)


def test_random_streets_score_what_the_official_script_gives() -> None:
    """EXPECTED is what cityscapesScripts 2.3.0 printed for these four streets."""
    rng = np.random.default_rng(7)
    cityscapes = CityscapesAp()
    for _ in range(4):
        cityscapes.add(*random_street(rng), ALL)
    scores = cityscapes.scores()
    assert scores.ap == pytest.approx(EXPECTED["ap"], abs=1e-9)
    assert scores.ap50 == pytest.approx(EXPECTED["ap50"], abs=1e-9)


EXPECTED = {"ap": 0.3803378588938813, "ap50": 0.6178679653679654}


def test_no_detections_at_all_score_zero() -> None:
    cityscapes = CityscapesAp()
    cityscapes.add(street((26001, 10, 10, 40, 30)), detect(), ALL)
    assert cityscapes.scores().ap == 0.0


def test_boxes_without_masks_are_refused() -> None:
    boxes = Instances((96, 128), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="needs masks"):
        CityscapesAp().add(street(), boxes, ALL)
