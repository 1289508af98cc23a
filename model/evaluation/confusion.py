"""The confusion matrix of a detector, and the quality of each image.

It shows the model at the score threshold of the service, whereas AP averages over all thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Category

# The service's default.
SCORE_THRESHOLD = 0.5
IOU_THRESHOLD = 0.5
# Row of detections without an object, and column of objects without a detection.
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class ImageScore:
    """What was right and wrong in one image."""

    # In the dataset.
    index: int
    # Panoptic quality (Kirillov et al., "Panoptic Segmentation", section 4.2) over all categories together, 0 to 1.
    quality: float
    # Objects with a detection of their category.
    found: int
    # Objects without a detection of any category.
    missed: int
    # Detections that match an object of another category.
    misclassified: int
    # Detections that match no object.
    false_positive: int


class Confusion:
    """Counts objects by their category and the category of the detection that matches them."""

    def __init__(self, categories: Sequence[Category], score_threshold: float = SCORE_THRESHOLD) -> None:
        self.score_threshold = score_threshold
        self.names = tuple(category.name for category in categories)
        self.ids = tuple(category.id for category in categories)
        self._row = {category.id: n for n, category in enumerate(categories)}
        # Rows are true categories, columns predicted ones; the last of each is BACKGROUND.
        self.matrix = np.zeros((len(categories) + 1, len(categories) + 1), np.int64)  # [K + 1, K + 1]
        self.images: list[ImageScore] = []

    def add(
        self, index: int, objects: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], kind: str
    ) -> None:
        """Count one image.

        A detection is matched with the object of any category that it overlaps most, unless a detection with a higher
        score has that object. Detections on crowds do not count.

        Args:
            index: of the image in the dataset.
            objects: COCO annotations, masks as RLE.
            detections: COCO results, in descending score.
            kind: "bbox" or "segm", what to compare.
        """
        from pycocotools import mask as coco  # noqa: PLC0415 - comes with the extra `train`

        key = {"bbox": "bbox", "segm": "segmentation"}[kind]
        confident = [d for d in detections if d["score"] >= self.score_threshold]
        true = [a for a in objects if not a.get("iscrowd")]
        crowds = [a for a in objects if a.get("iscrowd")]
        annotated = [a[key] for a in (*true, *crowds)]
        shape = len(confident), len(annotated)
        ious = np.zeros(shape)  # [D, G]
        if min(shape):
            # For a crowd, pycocotools returns the fraction of the detection that is inside it.
            crowd_flags = [0] * len(true) + [1] * len(crowds)
            ious = np.asarray(coco.iou([d[key] for d in confident], annotated, crowd_flags))
        background = len(self.names)
        matched: set[int] = set()
        right, quality, misclassified, false_positive = 0, 0.0, 0, 0
        for detection, row in zip(confident, ious, strict=True):
            column = self._row[detection["category_id"]]
            free = [n for n in np.argsort(-row[: len(true)], kind="stable").tolist() if n not in matched]
            if free and row[free[0]] >= IOU_THRESHOLD:
                matched.add(free[0])
                own = self._row[true[free[0]]["category_id"]]
                self.matrix[own, column] += 1
                right += own == column
                misclassified += own != column
                quality += float(row[free[0]]) * (own == column)
            elif not (row[len(true) :] >= IOU_THRESHOLD).any():
                self.matrix[background, column] += 1
                false_positive += 1
        for number, annotation in enumerate(true):
            if number not in matched:
                self.matrix[self._row[annotation["category_id"]], background] += 1
        missed = len(true) - len(matched)
        # A misclassified detection counts as a false positive and as a missed object.
        weight = right + (false_positive + misclassified) / 2 + (missed + misclassified) / 2
        self.images.append(
            ImageScore(
                index, quality / weight if weight else 1.0, right, missed, misclassified, false_positive
            )
        )

    def worst(self, count: int) -> list[ImageScore]:
        """The images with the lowest quality, the worst first; at equal quality the one with more errors first."""
        ranked = sorted(
            self.images, key=lambda i: (i.quality, -(i.missed + i.misclassified + i.false_positive))
        )
        return [image for image in ranked if image.quality < 1][:count]
