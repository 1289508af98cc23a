"""COCO AP and AR of a model on a dataset, through the same engine that serves.

The protocol is COCO's (cocodataset.org, "Detection Evaluation"), and pycocotools does the counting; it comes with
the extra `train`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.data.coco import coco_document
from model.instances import Instances, Options
from model.masks import paste

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from model.data import Category, Dataset, Sample
    from model.engine import Engine

# pycocotools' twelve figures, in its order: IoU, object area, detections per image.
FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP small",
    "AP medium",
    "AP large",
    "AR 1",
    "AR 10",
    "AR 100",
    "AR small",
    "AR medium",
    "AR large",
)


@dataclass(frozen=True, slots=True)
class Scores:
    """How well boxes, or masks, agree with the annotations; all from 0 to 1, -1 where there is nothing to count."""

    figures: dict[str, float]  # by FIGURES
    per_category: dict[str, tuple[float, float]]  # name → (AP, AP50)
    precision: (
        np.ndarray
    )  # [10, 101, K] at IoU .5:.05:.95, recall 0:.01:1, each category; all areas, 100 detections


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model scored on a dataset."""

    images: int
    objects: int  # annotated, without crowds
    box: Scores
    mask: Scores | None  # None for a model without masks

    def ap(self) -> dict[str, float]:
        """The figures that a weights file carries."""
        found = {"box": self.box.figures["AP"], "box50": self.box.figures["AP50"]}
        if self.mask is not None:
            found |= {"mask": self.mask.figures["AP"], "mask50": self.mask.figures["AP50"]}
        return {name: round(value, 4) for name, value in found.items()}


def evaluate(
    engine: Engine,
    dataset: Dataset,
    *,
    on_image: Callable[[int, Sample, Instances], None] | None = None,
) -> Evaluation:
    """Segment every image of a dataset, one at a time, and compare.

    A detection's category counts by its name in the dataset, so that a model may number its categories otherwise;
    instances of categories that the dataset does not have are left out. on_image gets each index, sample and result.
    """
    ids = _matching(engine.model.categories, dataset.categories)
    options = Options(score_threshold=0.0, categories=frozenset(ids))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    masks = True
    for index in range(len(dataset)):
        sample = dataset[index]
        height, width = sample.pixels.shape[:2]
        images.append({"id": sample.image_id, "height": height, "width": width})
        annotations += dataset.annotations(sample)
        found = engine.segment([sample.pixels], [options])[0]
        masks = masks and found.probabilities is not None
        results += coco_results(found, sample.image_id, ids)
        if on_image is not None:
            on_image(index, sample, found)
    truth = coco_document(images, annotations, dataset.categories)
    return Evaluation(
        images=len(images),
        objects=sum(not a.get("iscrowd") for a in annotations),
        box=score(truth, results, "bbox"),
        mask=score(truth, results, "segm") if masks else None,
    )


def _matching(own: tuple[Category, ...], theirs: tuple[Category, ...]) -> dict[int, int]:
    """The model's category ids → the dataset's, by name."""
    by_name = {category.name: category.id for category in theirs}
    return {category.id: by_name[category.name] for category in own if category.name in by_name}


def coco_results(instances: Instances, image_id: int, ids: dict[int, int]) -> list[dict[str, Any]]:
    """Unrounded COCO results records of one image. ids: the model's category ids → the annotations'."""
    sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
    records: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": ids[label],
            "bbox": [*corner, *side],
            "score": value,
        }
        for label, corner, side, value in zip(
            instances.labels.tolist(),
            instances.boxes[:, :2].tolist(),
            sides.tolist(),
            instances.scores.tolist(),
            strict=True,
        )
    ]
    if instances.probabilities is not None:
        rles = paste(instances.probabilities, instances.boxes, instances.size)
        for record, rle in zip(records, rles, strict=True):
            record["segmentation"] = rle.to_coco()
    return records


def score(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> Scores:
    """The twelve figures of results against a COCO instances document; kind: "bbox" or "segm"."""
    from pycocotools.coco import COCO  # noqa: PLC0415 - of the extra `train`; the service runs without it
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415 - likewise

    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        # loadRes refuses an empty list, which is an honest result of a model that finds nothing.
        # For masks it must not see the boxes, or it takes an object's area from them.
        hidden = {"segm": "bbox", "bbox": "segmentation"}[kind]
        kept = [{k: v for k, v in r.items() if k != hidden} for r in results]
        found = annotated.loadRes(kept) if kept else COCO()
        if not results:
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        counting = COCOeval(annotated, found, kind)
        counting.evaluate()
        counting.accumulate()
        counting.summarize()
    precision: np.ndarray = counting.eval["precision"][:, :, :, 0, 2]
    names = {c["id"]: str(c["name"]) for c in truth["categories"]}
    per_category = {
        names[number]: (_mean(precision[:, :, k]), _mean(precision[0, :, k]))
        for k, number in enumerate(counting.params.catIds)
    }
    figures = dict(zip(FIGURES, (float(value) for value in counting.stats), strict=True))
    return Scores(figures, per_category, precision)


def _mean(precision: np.ndarray) -> float:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else -1.0
