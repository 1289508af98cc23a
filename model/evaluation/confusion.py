"""What a model mistakes for what, and in which images it does worst: every detection beside the object that it covers.

One picture of the model at the threshold that people serve it with, where AP averages over all thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Category

LEAST_SCORE = 0.5  # the service's default
LEAST_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one image went."""

    index: int  # in the dataset
    quality: float  # panoptic quality (Kirillov et al., "Panoptic Segmentation", section 4.2), 0 to 1
    found: int  # objects with a detection of their own category
    missed: int
    misclassified: int  # detections that cover an object of another category
    false_positive: int  # detections that cover none


class Confusion:
    """Counts objects by their category and that of the detection that covers them."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self.names = tuple(category.name for category in categories)
        self._row = {category.id: n for n, category in enumerate(categories)}
        # [K + 1, K + 1]: rows are what is there, columns what was found; the last of each is "nothing".
        self.matrix = np.zeros((len(categories) + 1, len(categories) + 1), np.int64)
        self.verdicts: list[Verdict] = []

    def add(
        self, index: int, objects: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], kind: str
    ) -> None:
        """Count one image.

        objects: COCO annotations, masks as RLE. detections: COCO results, best first. kind: "bbox" or "segm", what to
        compare. A detection takes the object that it overlaps most, of any category, if no better one did; what
        covers a crowd is neither right nor wrong.
        """
        from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

        key = {"bbox": "bbox", "segm": "segmentation"}[kind]
        sure = [d for d in detections if d["score"] >= LEAST_SCORE]
        true = [a for a in objects if not a.get("iscrowd")]
        crowds = [a for a in objects if a.get("iscrowd")]
        theirs = [a[key] for a in (*true, *crowds)]
        shape = len(sure), len(theirs)
        overlaps = np.zeros(shape)  # [D, G]
        if min(shape):
            flags = [0] * len(true) + [1] * len(
                crowds
            )  # a crowd's overlap is the part of the detection inside it
            overlaps = np.asarray(coco.iou([d[key] for d in sure], theirs, flags))
        nothing = len(self.names)
        taken: set[int] = set()
        right, quality, misclassified, false_positive = 0, 0.0, 0, 0
        for detection, row in zip(sure, overlaps, strict=True):
            column = self._row[detection["category_id"]]
            free = [n for n in np.argsort(-row[: len(true)], kind="stable").tolist() if n not in taken]
            if free and row[free[0]] >= LEAST_OVERLAP:
                taken.add(free[0])
                own = self._row[true[free[0]]["category_id"]]
                self.matrix[own, column] += 1
                right += own == column
                misclassified += own != column
                quality += float(row[free[0]]) * (own == column)
            elif not (row[len(true) :] >= LEAST_OVERLAP).any():
                self.matrix[nothing, column] += 1
                false_positive += 1
        for number, annotation in enumerate(true):
            if number not in taken:
                self.matrix[self._row[annotation["category_id"]], nothing] += 1
        missed = len(true) - len(taken)
        # A mistaken detection is one found too much and one object missed.
        weight = right + (false_positive + misclassified) / 2 + (missed + misclassified) / 2
        self.verdicts.append(
            Verdict(index, quality / weight if weight else 1.0, right, missed, misclassified, false_positive)
        )

    def worst(self, count: int) -> list[Verdict]:
        """The images of least quality, the worst first; of those alike the one with more errors."""
        ranked = sorted(
            self.verdicts, key=lambda v: (v.quality, -(v.missed + v.misclassified + v.false_positive))
        )
        return [verdict for verdict in ranked if verdict.quality < 1][:count]
