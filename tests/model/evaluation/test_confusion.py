"""Which object each detection covers, what that makes of an image, and which images are worst."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.data import Category
from model.evaluation.confusion import Confusion, Verdict

CATEGORIES = (Category(5, "cat"), Category(9, "dog"))


def true(category: int, *box: int, crowd: bool = False) -> dict[str, Any]:
    return {"category_id": category, "bbox": list(box), "iscrowd": int(crowd)}


def seen(category: int, score: float, *box: int) -> dict[str, Any]:
    return {"category_id": category, "score": score, "bbox": list(box)}


def counted(objects: list[dict[str, Any]], detections: list[dict[str, Any]]) -> Confusion:
    confusion = Confusion(CATEGORIES)
    confusion.add(0, objects, detections, "bbox")
    return confusion


def test_rows_are_what_is_there_and_columns_what_was_found() -> None:
    confusion = counted(
        [true(5, 0, 0, 10, 10), true(9, 50, 0, 10, 10), true(9, 0, 50, 10, 10)],
        [seen(5, 0.9, 0, 0, 10, 10), seen(5, 0.8, 50, 0, 10, 10), seen(9, 0.7, 80, 80, 10, 10)],
    )
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    # 1 right of IoU 1, over 1 + (1 invented + 1 mistaken) / 2 + (1 missed + 1 mistaken) / 2.
    assert confusion.verdicts == [Verdict(0, 1 / 3, found=1, missed=1, misclassified=1, false_positive=1)]


def test_only_sure_detections_count() -> None:
    confusion = counted([true(5, 0, 0, 10, 10)], [seen(5, 0.49, 0, 0, 10, 10)])
    assert confusion.matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_second_detection_of_an_object_is_invented() -> None:
    confusion = counted([true(5, 0, 0, 10, 10)], [seen(5, 0.9, 0, 0, 10, 9), seen(5, 0.8, 0, 0, 10, 10)])
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert np.isclose(confusion.verdicts[0].quality, 0.9 / 1.5)


def test_what_covers_a_crowd_is_neither_right_nor_wrong() -> None:
    confusion = counted([true(5, 0, 0, 100, 100, crowd=True)], [seen(9, 0.9, 10, 10, 10, 10)])
    assert confusion.matrix.sum() == 0
    assert confusion.verdicts[0].quality == 1.0


def test_worst_images_come_first_and_perfect_ones_not_at_all() -> None:
    confusion = Confusion(CATEGORIES)
    confusion.add(0, [true(5, 0, 0, 10, 10)], [seen(5, 0.9, 0, 0, 10, 10)], "bbox")
    confusion.add(1, [true(5, 0, 0, 10, 10)], [], "bbox")
    confusion.add(2, [true(5, 0, 0, 10, 10)], [seen(5, 0.9, 0, 0, 10, 8)], "bbox")
    confusion.add(3, [true(5, 0, 0, 10, 10), true(5, 50, 50, 9, 9)], [], "bbox")
    assert [verdict.index for verdict in confusion.worst(9)] == [3, 1, 2]
    assert [verdict.index for verdict in confusion.worst(1)] == [3]
