"""Instance matching as in microscopy: TP / (TP + FP + FN) at fixed IoU thresholds, F1 and panoptic quality.

The figures are those of StarDist's `matching` (Weigert et al., "Star-convex Polyhedra", 2020, section 3.2), which the
Data Science Bowl 2018 used first: detections above one score threshold are matched one-to-one with objects. COCO's AP,
in contrast, ranks detections by score.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from model.evaluation.confusion import SCORE_THRESHOLD
from model.masks.rle import Rle, foreground

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# 0.5, 0.55 … 0.95, each the double closest to the decimal number.
IOU_THRESHOLDS = tuple(n / 20 for n in range(10, 20))
# "ap" is TP / (TP + FP + FN), which the field calls average precision, although it averages nothing.
METRICS = ("ap", "f1", "precision", "recall", "panoptic_quality")


@dataclass(frozen=True, slots=True)
class Counts:
    """The matches at one IoU threshold. Every figure is 0 without a true positive, as in StarDist."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    # Over the true positives.
    iou_sum: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.iou_sum + other.iou_sum,
        )

    def figures(self) -> dict[str, float]:
        """The figures by METRICS, from 0 to 1."""
        tp, fp, fn = self.true_positives, self.false_positives, self.false_negatives
        if not tp:
            return dict.fromkeys(METRICS, 0.0)
        return {
            "ap": tp / (tp + fp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "panoptic_quality": self.iou_sum / (tp + fp / 2 + fn / 2),
        }


@dataclass(frozen=True, slots=True)
class MatchingScores:
    """Figures by METRICS, each a list by `iou_thresholds`."""

    score_threshold: float
    iou_thresholds: tuple[float, ...]
    # Means of the figures of single images.
    by_image: dict[str, list[float]]
    # Figures of the counts of all images together.
    pooled: dict[str, list[float]]
    # The counts of all images together.
    true_positives: list[int]
    false_positives: list[int]
    false_negatives: list[int]


class Matching:
    """Accumulates images, and computes the figures of all of them."""

    def __init__(self, score_threshold: float = SCORE_THRESHOLD) -> None:
        self.score_threshold = score_threshold
        self._images: list[list[Counts]] = []

    def add(
        self,
        objects: Sequence[dict[str, Any]],
        detections: Sequence[dict[str, Any]],
        size: tuple[int, int],
    ) -> None:
        """Add one image. The counts are the sums over its categories, each of which is matched by itself.

        As in a label image, a pixel of several detections of a category belongs to the one with the highest score, and
        a detection without any pixel left does not count. Crowds are no objects, and unmatched detections that lie for
        the most part on crowds of their category do not count.

        Args:
            objects: COCO annotations, masks as RLE.
            detections: COCO results, in descending score.
            size: (height, width) of the image.
        """
        confident = [d for d in detections if d["score"] >= self.score_threshold]
        counts = [Counts()] * len(IOU_THRESHOLDS)
        for category in sorted({record["category_id"] for record in (*objects, *confident)}):
            true, found = (
                [record for record in records if record["category_id"] == category]
                for records in (objects, confident)
            )
            counts = [a + b for a, b in zip(counts, _match_category(true, found, size), strict=True)]
        self._images.append(counts)

    def scores(self) -> MatchingScores:
        """The figures of all images that were added."""
        totals = [sum(column, Counts()) for column in zip(*self._images, strict=True)]
        pooled = [counts.figures() for counts in totals]
        single = [[counts.figures() for counts in column] for column in zip(*self._images, strict=True)]
        return MatchingScores(
            self.score_threshold,
            IOU_THRESHOLDS,
            by_image={m: [fmean(image[m] for image in column) for column in single] for m in METRICS},
            pooled={m: [figures[m] for figures in pooled] for m in METRICS},
            true_positives=[counts.true_positives for counts in totals],
            false_positives=[counts.false_positives for counts in totals],
            false_negatives=[counts.false_negatives for counts in totals],
        )


def match(ious: NDArray[np.float64], *, ignored: NDArray[np.bool_] | None = None) -> list[Counts]:
    """Match objects and detections one-to-one, in descending IoU; return the counts at each of IOU_THRESHOLDS.

    If neither objects nor detections overlap among themselves, no other matching has more pairs at any threshold: an
    object can then share an IoU of at least 0.5 with two detections only if these are its exact halves.

    Args:
        ious: [T, D] of each object and each detection.
        ignored: [D] detections that are no false positives if they are unmatched.
    """
    objects, detections = ious.shape
    pairs = np.argwhere(ious >= IOU_THRESHOLDS[0])  # [P, 2]
    values = ious[pairs[:, 0], pairs[:, 1]]
    matched: list[float] = []
    matched_ignored: list[bool] = []
    free_objects, free_detections = np.ones(objects, np.bool_), np.ones(detections, np.bool_)
    for pair in np.argsort(-values, kind="stable").tolist():
        row, column = pairs[pair]
        if free_objects[row] and free_detections[column]:
            free_objects[row] = free_detections[column] = False
            matched.append(float(values[pair]))
            matched_ignored.append(ignored is not None and bool(ignored[column]))
    ignored_count = 0 if ignored is None else int(ignored.sum())
    result = []
    for threshold in IOU_THRESHOLDS:
        # The pairs are in descending IoU, so that those above a threshold come first.
        hits = sum(iou >= threshold for iou in matched)
        unmatched_ignored = ignored_count - sum(matched_ignored[:hits])
        result.append(
            Counts(hits, detections - hits - unmatched_ignored, objects - hits, sum(matched[:hits]))
        )
    return result


def _match_category(
    objects: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], size: tuple[int, int]
) -> list[Counts]:
    """The counts of one category in one image at each of IOU_THRESHOLDS. Arguments as for `Matching.add`."""
    # [H * W] in column-major order; 0 is background, n the detection n - 1.
    label_image = np.zeros(size[0] * size[1], np.int32)
    for number, detection in enumerate(detections, start=1):
        pixels = _pixels(detection)
        label_image[pixels[label_image[pixels] == 0]] = number
    sizes = np.bincount(label_image, minlength=len(detections) + 1)[1:]  # [D] pixels
    ious, on_crowds = [], np.zeros(len(detections), np.int64)
    for annotation in objects:
        pixels = _pixels(annotation)
        shared = np.bincount(label_image[pixels], minlength=len(detections) + 1)[1:]
        if annotation.get("iscrowd"):
            on_crowds += shared
        else:
            ious.append(shared / np.maximum(len(pixels) + sizes - shared, 1))
    visible = sizes > 0
    table = np.array(ious).reshape(len(ious), len(detections))[:, visible]
    return match(table, ignored=(2 * on_crowds >= sizes)[visible])


def _pixels(record: dict[str, Any]) -> NDArray[np.int64]:
    return foreground(Rle.from_coco(record["segmentation"]))
