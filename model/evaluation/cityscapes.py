"""Cityscapes' instance AP, equal to its own evaluation script (Cordts et al., "The Cityscapes Dataset", section 4.2).

It differs from COCO's AP: a detection may overlap several objects, groups of objects and void pixels excuse a
detection, and the area under the precision-recall curve is a sum over all scores instead of 101 recalls.

cityscapesScripts reads folders of PNG and text files in a layout of its own, one prediction an image file, so training
and evaluation do without it; it was compared once (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.data.cityscapes import CATEGORIES, FIRST_INSTANCE, VOID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from model.instances import Instances

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
# Pixels. Smaller objects need not be found, and finding them is no error.
MIN_REGION_SIZE = 100


@dataclass(frozen=True, slots=True)
class CityscapesScores:
    """AP over ten IoU thresholds and AP at IoU 0.5, from 0 to 1; NaN for a category without objects."""

    ap: float
    ap50: float
    # Name → AP and AP at IoU 0.5.
    per_category: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Region:
    """One object of the ground truth, or a group of objects."""

    # Its value in the map of instance ids.
    number: int
    pixels: int


@dataclass(slots=True)
class _Detection:
    """One detection, and its intersections with regions of its category."""

    score: float
    pixels: int
    # Pixels on void.
    void: int
    # Number of a region → pixels in common.
    intersections: dict[int, int] = field(default_factory=dict)


class CityscapesAp:
    """Accumulates images, and computes the figures of all of them."""

    def __init__(self) -> None:
        # Category id → regions and detections of each image.
        self._images: dict[int, list[tuple[list[_Region], list[_Detection]]]] = {c.id: [] for c in CATEGORIES}

    def add(self, instance_ids: NDArray[np.int32], predicted: Instances, ids: dict[int, int]) -> None:
        """Add one image.

        Args:
            instance_ids: [H, W], the contents of *_gtFine_instanceIds.png.
            predicted: the model's instances, with masks.
            ids: the model's category ids → Cityscapes' label ids. Instances of other categories do not count.

        Raises ValueError for instances without masks.
        """
        numbers, counts = np.unique(instance_ids, return_counts=True)
        regions = [_Region(int(n), int(c)) for n, c in zip(numbers, counts, strict=True)]
        detections: dict[int, list[_Detection]] = {category.id: [] for category in CATEGORIES}
        for label, detection in _detections(instance_ids, predicted, ids):
            detections[label].append(detection)
        for category in CATEGORIES:
            own = [r for r in regions if _label(r.number) == category.id]
            self._images[category.id].append((own, detections[category.id]))

    def scores(self) -> CityscapesScores:
        """The figures of all images that were added."""
        table = np.array(
            [
                [_average_precision(self._images[category.id], iou) for iou in IOU_THRESHOLDS]
                for category in CATEGORIES
            ]
        )  # [categories, thresholds]
        per_category = {
            category.name: (_mean(row), float(row[0]))
            for category, row in zip(CATEGORIES, table, strict=True)
        }
        return CityscapesScores(_mean(table), _mean(table[:, 0]), per_category)


def _label(number: int) -> int:
    return number // FIRST_INSTANCE if number >= FIRST_INSTANCE else number


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _detections(
    instance_ids: NDArray[np.int32], predicted: Instances, ids: dict[int, int]
) -> Iterator[tuple[int, _Detection]]:
    """Cityscapes' label id and the detection, for each instance whose mask is not empty."""
    if not predicted.has_masks:
        raise ValueError("Cityscapes' instance AP needs masks, and these instances have none")
    crops = predicted.crops()
    for label, score, crop in zip(predicted.labels.tolist(), predicted.scores.tolist(), crops, strict=True):
        if label not in ids or not crop.bitmap.any():
            continue
        height, width = crop.bitmap.shape
        under = instance_ids[crop.top : crop.top + height, crop.left : crop.left + width][crop.bitmap]
        numbers, counts = np.unique(under, return_counts=True)
        detection = _Detection(score, len(under), int(counts[np.isin(numbers, VOID)].sum()))
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if _label(number) == ids[label]:
                detection.intersections[number] = count
        yield ids[label], detection


def _average_precision(images: list[tuple[list[_Region], list[_Detection]]], threshold: float) -> float:
    """AP of one category at one IoU threshold; NaN without objects."""
    true, scores, missed = [], [], 0
    any_objects = any_detections = False
    for regions, detections in images:
        objects = [r for r in regions if r.number >= FIRST_INSTANCE and r.pixels >= MIN_REGION_SIZE]
        any_objects, any_detections = any_objects or bool(objects), any_detections or bool(detections)
        for region in objects:
            matching = sorted((d.score for d in detections if _iou(d, region) > threshold), reverse=True)
            missed += not matching
            # The detection with the highest score counts; other detections of the same object are errors.
            true += [1.0 if rank == 0 else 0.0 for rank in range(len(matching))]
            scores += matching
        for detection in detections:
            if any(_iou(detection, region) > threshold for region in regions):
                continue
            excused = detection.void
            for region in regions:
                shared = detection.intersections.get(region.number, 0)
                # A region that is both a group and small counts twice, as in the original script.
                excused += shared * (region.number < FIRST_INSTANCE)
                excused += shared * (region.pixels < MIN_REGION_SIZE)
            if excused / detection.pixels <= threshold:
                true.append(0.0)
                scores.append(detection.score)
    if not any_objects:
        return float("nan")
    if not any_detections:
        return 0.0
    return _integrate(np.array(true), np.array(scores), missed)


def _iou(detection: _Detection, region: _Region) -> float:
    shared = detection.intersections.get(region.number, 0)
    return shared / (region.pixels + detection.pixels - shared)


def _integrate(true: NDArray[np.float64], scores: NDArray[np.float64], missed: int) -> float:
    """The area under the precision-recall curve, by the original script's central differences of recall."""
    if not len(scores):
        return 0.0
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)
    # Matched objects whose score is below each distinct score.
    before = np.append(0.0, np.cumsum(true[order]))[first]  # [T]
    hits = true.sum() - before
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / max(true.sum() + missed, 1), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (0.5 * (around[:-2] - around[2:])))
