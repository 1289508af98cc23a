"""The confusion matrix, the score of each image, and which images are worst."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.data import Category
from model.evaluation.confusion import Confusion, ImageScore

CATEGORIES = (Category(5, "cat"), Category(9, "dog"))


def annotate(category: int, *box: int, crowd: bool = False) -> dict[str, Any]:
    return {"category_id": category, "bbox": list(box), "iscrowd": int(crowd)}


def detect(category: int, score: float, *box: int) -> dict[str, Any]:
    return {"category_id": category, "score": score, "bbox": list(box)}


def count(objects: list[dict[str, Any]], detections: list[dict[str, Any]]) -> Confusion:
    confusion = Confusion(CATEGORIES)
    confusion.add(0, objects, detections, "bbox")
    return confusion


def test_rows_are_true_and_columns_predicted_categories() -> None:
    confusion = count(
        [annotate(5, 0, 0, 10, 10), annotate(9, 50, 0, 10, 10), annotate(9, 0, 50, 10, 10)],
        [detect(5, 0.9, 0, 0, 10, 10), detect(5, 0.8, 50, 0, 10, 10), detect(9, 0.7, 80, 80, 10, 10)],
    )
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    # 1 right of IoU 1, over 1 + (1 false positive + 1 misclassified) / 2 + (1 missed + 1 misclassified) / 2.
    assert confusion.images == [ImageScore(0, 1 / 3, found=1, missed=1, misclassified=1, false_positive=1)]


def test_only_detections_above_the_score_threshold_count() -> None:
    confusion = count([annotate(5, 0, 0, 10, 10)], [detect(5, 0.49, 0, 0, 10, 10)])
    assert confusion.matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_second_detection_of_an_object_is_a_false_positive() -> None:
    confusion = count(
        [annotate(5, 0, 0, 10, 10)], [detect(5, 0.9, 0, 0, 10, 9), detect(5, 0.8, 0, 0, 10, 10)]
    )
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert np.isclose(confusion.images[0].quality, 0.9 / 1.5)


def test_detection_on_a_crowd_does_not_count() -> None:
    confusion = count([annotate(5, 0, 0, 100, 100, crowd=True)], [detect(9, 0.9, 10, 10, 10, 10)])
    assert confusion.matrix.sum() == 0
    assert confusion.images[0].quality == 1.0


def test_worst_images_come_first_and_perfect_images_are_left_out() -> None:
    confusion = Confusion(CATEGORIES)
    confusion.add(0, [annotate(5, 0, 0, 10, 10)], [detect(5, 0.9, 0, 0, 10, 10)], "bbox")
    confusion.add(1, [annotate(5, 0, 0, 10, 10)], [], "bbox")
    confusion.add(2, [annotate(5, 0, 0, 10, 10)], [detect(5, 0.9, 0, 0, 10, 8)], "bbox")
    confusion.add(3, [annotate(5, 0, 0, 10, 10), annotate(5, 50, 50, 9, 9)], [], "bbox")
    assert [image.index for image in confusion.worst(9)] == [3, 1, 2]
    assert [image.index for image in confusion.worst(1)] == [3]
