"""Cityscapes' instance AP, as its own evaluation script counts it (Cordts et al., "The Cityscapes Dataset", 4.2).

It differs from COCO's: every detection stands for a mask of its own, regions of objects that nobody could tell apart
and void pixels are no errors, and precision is integrated step by step instead of at 101 recalls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.data.cityscapes import CATEGORIES, FIRST_INSTANCE, VOID
from model.masks.paste import crops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from model.instances import Instances

OVERLAPS = np.arange(0.5, 1.0, 0.05)
LEAST_REGION = 100  # pixels; smaller objects are neither asked for nor errors where they are found


@dataclass(frozen=True, slots=True)
class CityscapesScores:
    """AP over ten overlaps and AP at 50 %, 0 to 1; NaN for a category without objects."""

    ap: float
    ap50: float
    per_category: dict[str, tuple[float, float]]  # name → (AP, AP50)


@dataclass(frozen=True, slots=True)
class _Region:
    """One object of the ground truth, or a group of them."""

    number: int  # its value in the instance map
    pixels: int


@dataclass(slots=True)
class _Found:
    """One detection and the regions of its category that it touches."""

    score: float
    pixels: int
    void: int  # of them on void
    shared: dict[int, int] = field(default_factory=dict)  # region's number → pixels in common


class CityscapesAp:
    """Takes one image after the other, and has the figures in the end."""

    def __init__(self) -> None:
        # category id → for each image its regions and detections
        self._images: dict[int, list[tuple[list[_Region], list[_Found]]]] = {c.id: [] for c in CATEGORIES}

    def add(self, instance_ids: NDArray[np.int32], found: Instances, ids: dict[int, int]) -> None:
        """Count one image.

        instance_ids: [H, W] as *_gtFine_instanceIds.png has them. found: with masks. ids: the model's category ids →
        Cityscapes' label ids; other detections do not count.
        """
        numbers, counts = np.unique(instance_ids, return_counts=True)
        regions = [_Region(int(n), int(c)) for n, c in zip(numbers, counts, strict=True)]
        detections: dict[int, list[_Found]] = {category.id: [] for category in CATEGORIES}
        for label, detection in _detections(instance_ids, found, ids):
            detections[label].append(detection)
        for category in CATEGORIES:
            own = [r for r in regions if _label(r.number) == category.id]
            self._images[category.id].append((own, detections[category.id]))

    def scores(self) -> CityscapesScores:
        """The figures of all images so far."""
        table = np.array(  # [categories, overlaps]
            [
                [_average_precision(self._images[category.id], overlap) for overlap in OVERLAPS]
                for category in CATEGORIES
            ]
        )
        per_category = {
            category.name: (_mean(row), float(row[0]))
            for category, row in zip(CATEGORIES, table, strict=True)
        }
        return CityscapesScores(_mean(table), _mean(table[:, 0]), per_category)


def _label(number: int) -> int:
    return number // FIRST_INSTANCE if number >= FIRST_INSTANCE else number


def _mean(values: NDArray[np.float64]) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")


def _detections(
    instance_ids: NDArray[np.int32], found: Instances, ids: dict[int, int]
) -> Iterator[tuple[int, _Found]]:
    """Each detection with any pixels, under its Cityscapes label id."""
    if found.probabilities is None:
        raise ValueError("Cityscapes' instance AP is about masks, and these detections have none")
    pasted = crops(found.probabilities, found.boxes, found.size)
    for label, score, crop in zip(found.labels.tolist(), found.scores.tolist(), pasted, strict=True):
        if label not in ids or not crop.bitmap.any():
            continue
        height, width = crop.bitmap.shape
        under = instance_ids[crop.top : crop.top + height, crop.left : crop.left + width][crop.bitmap]
        numbers, counts = np.unique(under, return_counts=True)
        detection = _Found(score, len(under), int(counts[np.isin(numbers, VOID)].sum()))
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if _label(number) == ids[label]:
                detection.shared[number] = count
        yield ids[label], detection


def _average_precision(images: list[tuple[list[_Region], list[_Found]]], least: float) -> float:
    """Of one category at one overlap; NaN where there is no object."""
    true, scores, missed = [], [], 0
    objects = detections = False
    for regions, found in images:
        wanted = [r for r in regions if r.number >= FIRST_INSTANCE and r.pixels >= LEAST_REGION]
        objects, detections = objects or bool(wanted), detections or bool(found)
        for region in wanted:
            matching = sorted((f.score for f in found if _overlap(f, region) > least), reverse=True)
            missed += not matching
            # The surest detection counts; the others of the same object are errors.
            true += [1.0 if rank == 0 else 0.0 for rank in range(len(matching))]
            scores += matching
        for detection in found:
            if any(_overlap(detection, region) > least for region in regions):
                continue
            excused = detection.void
            for region in regions:
                shared = detection.shared.get(region.number, 0)
                # A region that is a group and small counts twice, as in the original.
                excused += shared * (region.number < FIRST_INSTANCE) + shared * (region.pixels < LEAST_REGION)
            if excused / detection.pixels <= least:
                true.append(0.0)
                scores.append(detection.score)
    if not objects:
        return float("nan")
    if not detections:
        return 0.0
    return _integrated(np.array(true), np.array(scores), missed)


def _overlap(detection: _Found, region: _Region) -> float:
    shared = detection.shared.get(region.number, 0)
    return shared / (region.pixels + detection.pixels - shared)


def _integrated(true: NDArray[np.float64], scores: NDArray[np.float64], missed: int) -> float:
    """The area under precision and recall, each step weighted by half the recall on both sides of it."""
    if not len(scores):
        return 0.0
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)
    before = np.append(0.0, np.cumsum(true[order]))[first]  # [T] objects found only below a threshold
    hits = true.sum() - before
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / max(true.sum() + missed, 1), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (0.5 * (around[:-2] - around[2:])))
