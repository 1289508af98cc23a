"""TP / (TP + FP + FN) and its company: equal to the definition, and to StarDist's package where that is installed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluation.matching import IOU_THRESHOLDS, METRICS, Matching, MatchingScores
from model.masks.rle import encode

SIZE = (40, 48)
# Our names of figures that have another name in StarDist.
STARDIST = {"ap": "accuracy"}


def annotate(mask: np.ndarray, category: int = 1, *, crowd: bool = False) -> dict[str, Any]:
    return {"category_id": category, "iscrowd": int(crowd), "segmentation": encode(mask).to_coco()}


def detect(mask: np.ndarray, score: float = 0.9, category: int = 1) -> dict[str, Any]:
    return {"category_id": category, "score": score, "segmentation": encode(mask).to_coco()}


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def score(*images: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> MatchingScores:
    matching = Matching()
    for objects, detections in images:
        matching.add(objects, detections, SIZE)
    return matching.scores()


def random_labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Label images of objects and detections: boxes that are moved, missed, split, or found where nothing is."""
    truth, predicted = np.zeros(SIZE, np.int32), np.zeros(SIZE, np.int32)
    for number in range(1, int(rng.integers(0, 9))):
        height, width = rng.integers(3, 14, 2).tolist()
        top, left = int(rng.integers(0, SIZE[0] - height)), int(rng.integers(0, SIZE[1] - width))
        truth[top : top + height, left : left + width] = number
        kind = rng.random()
        if kind < 0.1:
            continue
        dy, dx = rng.integers(-2, 3, 2).tolist() if kind < 0.8 else (0, 0)
        y, x = max(0, top + dy), max(0, left + dx)
        predicted[y : y + height, x : x + width] = 2 * number
        if kind > 0.9:
            predicted[y : y + height, x : x + (width + 1) // 2] = 2 * number + 1
    if rng.random() < 0.3:
        predicted[:3, :3] = 99
    return truth, predicted


def to_records(truth: np.ndarray, predicted: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    objects = [annotate((truth == n).astype(np.uint8)) for n in np.unique(truth[truth > 0])]
    return objects, [detect((predicted == n).astype(np.uint8)) for n in np.unique(predicted[predicted > 0])]


def by_definition(truth: np.ndarray, predicted: np.ndarray, threshold: float) -> dict[str, float]:
    """The figures of one image from the definition: the best of all one-to-one matchings, tried one by one."""
    true, found = ([labels == n for n in np.unique(labels[labels > 0])] for labels in (truth, predicted))
    ious = [[(a & b).sum() / (a | b).sum() for b in found] for a in true]

    @cache
    def best(row: int, free: frozenset[int]) -> tuple[int, float]:
        """Most pairs from this object on, and their largest sum of IoUs."""
        if row == len(true):
            return 0, 0.0
        options = [best(row + 1, free)]
        for column in free:
            if ious[row][column] >= threshold:
                pairs, total = best(row + 1, free - {column})
                options.append((pairs + 1, total + ious[row][column]))
        return max(options)

    tp, total = best(0, frozenset(range(len(found))))
    fp, fn = len(found) - tp, len(true) - tp
    if not tp:
        return dict.fromkeys(METRICS, 0.0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    quality = total / tp * f1
    return {
        "ap": tp / (tp + fp + fn), "f1": f1, "precision": precision, "recall": recall, "panoptic_quality": quality
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_figures_of_random_images_are_those_of_the_definition(seed: int) -> None:
    truth, predicted = random_labels(np.random.default_rng(seed))
    scores = score(to_records(truth, predicted))
    for column, threshold in enumerate(IOU_THRESHOLDS):
        expected = by_definition(truth, predicted, threshold)
        for metric in METRICS:
            assert scores.by_image[metric][column] == pytest.approx(expected[metric], abs=1e-12), metric
            assert scores.pooled[metric][column] == scores.by_image[metric][column]


def test_golden_figures_are_those_of_stardist() -> None:
    """The file and its figures are made by golden/make.py."""
    golden = json.loads((Path(__file__).parent / "golden" / "matching.json").read_text())
    matching = Matching()
    for image in golden["images"]:
        truth, predicted = (
            np.repeat(*np.array(image[kind]).T).reshape(golden["size"]) for kind in ("truth", "predicted")
        )
        matching.add(*to_records(truth, predicted), tuple(golden["size"]))
    scores = matching.scores()
    for key, ours in (("by_image", scores.by_image), ("pooled", scores.pooled)):
        for metric in METRICS:
            # StarDist computes IoUs in float32.
            assert ours[metric] == pytest.approx(
                golden["expected"][key][STARDIST.get(metric, metric)], abs=1e-6
            )


@pytest.mark.parametrize("by_image", [True, False], ids=["by image", "pooled"])
def test_figures_of_random_images_are_those_of_stardist(by_image: bool) -> None:
    """Needs the dependency group `stardist`, in a virtual environment of its own."""
    stardist = pytest.importorskip("stardist.matching", reason="stardist is not installed: group `stardist`")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        images = [random_labels(rng) for _ in range(6)]
        scores = score(*(to_records(*image) for image in images))
        ours = scores.by_image if by_image else scores.pooled
        truth, predicted = ([image[kind] for image in images] for kind in (0, 1))
        theirs = stardist.matching_dataset(
            truth, predicted, thresh=IOU_THRESHOLDS, by_image=by_image, show_progress=False
        )
        for metric in METRICS:
            expected = [getattr(result, STARDIST.get(metric, metric)) for result in theirs]
            # StarDist computes IoUs in float32.
            assert ours[metric] == pytest.approx(expected, abs=1e-6), (metric, by_image)


def test_pooled_figures_count_objects_and_means_count_images() -> None:
    many = [box(10 * n, 0, 6, 6) for n in range(4)]
    scores = score(
        ([annotate(mask) for mask in many], [detect(mask) for mask in many]),
        ([annotate(box(0, 0, 6, 6))], [detect(box(20, 20, 6, 6))]),
    )
    assert scores.by_image["ap"][0] == 0.5
    assert scores.pooled["ap"][0] == 4 / 6
    assert (scores.true_positives[0], scores.false_positives[0], scores.false_negatives[0]) == (4, 1, 1)


def test_iou_equal_to_a_threshold_matches() -> None:
    # 65 of 100 pixels, and 13 / 20 is not exact in binary.
    found = box(0, 0, 10, 6) + box(0, 6, 5, 1)
    scores = score(([annotate(box(0, 0, 10, 10))], [detect(found)]))
    assert scores.pooled["ap"] == [1.0] * 4 + [0.0] * 6


def test_only_detections_above_the_score_threshold_count() -> None:
    mask = box(0, 0, 8, 8)
    objects, detections = [annotate(mask)], [detect(mask, 0.49)]
    assert score((objects, detections)).pooled["ap"][0] == 0.0
    matching = Matching(score_threshold=0.4)
    matching.add(objects, detections, SIZE)
    assert matching.scores().pooled["ap"][0] == 1.0


def test_pixel_of_two_detections_belongs_to_the_higher_score() -> None:
    whole, left = box(0, 0, 10, 10), box(0, 0, 10, 5)
    scores = score(([annotate(whole)], [detect(left, 0.9), detect(whole, 0.8)]))
    # Each detection has half of the object.
    assert (scores.true_positives[0], scores.false_positives[0], scores.true_positives[1]) == (1, 1, 0)
    hidden = score(([annotate(whole)], [detect(whole, 0.9), detect(left, 0.8)]))
    assert (hidden.true_positives[9], hidden.false_positives[9]) == (1, 0)


def test_detection_of_another_category_is_a_false_positive() -> None:
    scores = score(([annotate(box(0, 0, 8, 8), 1)], [detect(box(0, 0, 8, 8), category=2)]))
    assert (scores.true_positives[0], scores.false_positives[0], scores.false_negatives[0]) == (0, 1, 1)


def test_a_nucleus_inside_a_cell_takes_nothing_from_it() -> None:
    """Each category has a label image of its own; as one, the cell would lose the nucleus' pixels."""
    cell, nucleus = box(0, 0, 20, 20), box(4, 4, 14, 14)
    objects = [annotate(cell, 1), annotate(nucleus, 2)]
    detections = [detect(nucleus, 0.95, 2), detect(cell, 0.9, 1)]
    scores = score((objects, detections))
    assert (scores.true_positives[9], scores.false_positives[9], scores.false_negatives[9]) == (2, 0, 0)
    assert scores.pooled["panoptic_quality"] == [1.0] * 10


def test_crowd_of_another_category_excuses_nothing() -> None:
    crowd = annotate(box(0, 0, 30, 30), 2, crowd=True)
    scores = score(([crowd], [detect(box(10, 10, 8, 8), category=1)]))
    assert scores.false_positives[0] == 1


def test_unmatched_detection_on_a_crowd_does_not_count() -> None:
    crowd = annotate(box(0, 0, 30, 30), crowd=True)
    scores = score(([crowd, annotate(box(0, 0, 8, 8))], [detect(box(0, 0, 8, 7)), detect(box(10, 10, 8, 8))]))
    # An IoU of 7 / 8: at 0.9 both detections are unmatched.
    assert (scores.true_positives[0], scores.false_positives[0], scores.false_negatives[0]) == (1, 0, 0)
    assert (scores.true_positives[8], scores.false_positives[8], scores.false_negatives[8]) == (0, 0, 1)


def test_thresholds_cover_half_to_nineteen_twentieths() -> None:
    assert [f"{threshold:.2f}" for threshold in IOU_THRESHOLDS] == [
        "0.50", "0.55", "0.60", "0.65", "0.70", "0.75", "0.80", "0.85", "0.90", "0.95",
    ]  # fmt: skip
