"""COCO AP and AR of a model on a dataset, through the same engine that serves.

The protocol is COCO's (cocodataset.org, "Detection Evaluation"), and pycocotools does the counting; it comes with
the extra `train`. Cityscapes is measured by its own protocol besides, see cityscapes_ap.py.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.data import DatasetError
from model.data.cityscapes import Cityscapes
from model.data.coco import coco_document
from model.evaluation.cityscapes import CityscapesAp
from model.evaluation.confusion import Confusion
from model.instances import Instances, Options
from model.masks.paste import paste

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from model.data import Category, Dataset, Sample
    from model.evaluation.cityscapes import CityscapesScores
    from model.inference.engine import Engine

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

# Those that make sense of a single category.
CATEGORY_FIGURES = (*FIGURES[:6], "AR 100")


@dataclass(frozen=True, slots=True)
class Scores:
    """How well boxes, or masks, agree with the annotations; all from 0 to 1, -1 where there is nothing to count."""

    figures: dict[str, float]  # by FIGURES
    per_category: dict[str, dict[str, float]]  # name → figures by CATEGORY_FIGURES
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
    confusion: Confusion  # at a score of 0.5, and what was wrong in each image
    cityscapes: CityscapesScores | None = None  # of a model with masks, on Cityscapes
    unreadable: tuple[str, ...] = ()  # images that were left out, and why

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
    An image that cannot be read is left out and named in the result. Raises DatasetError if none can be.
    """
    ids = matching(engine.model.categories, dataset.categories)
    options = Options(score_threshold=0.0, categories=frozenset(ids))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    masks = engine.model.architecture.mask_convs > 0
    confusion = Confusion(dataset.categories)
    streets = CityscapesAp() if isinstance(dataset, Cityscapes) and masks else None
    unreadable: list[str] = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except DatasetError as error:
            unreadable.append(str(error))
            continue
        height, width = sample.pixels.shape[:2]
        images.append({"id": sample.image_id, "height": height, "width": width})
        true = dataset.annotations(sample)
        annotations += true
        found = engine.segment([sample.pixels], [options])[0]
        masks = masks and found.probabilities is not None
        records = coco_results(found, sample.image_id, ids)
        results += records
        confusion.add(index, true, records, "segm" if masks else "bbox")
        if streets is not None and isinstance(dataset, Cityscapes):
            streets.add(dataset.instance_ids(index), found, ids)
        if on_image is not None:
            on_image(index, sample, found)
    if not images:
        raise DatasetError(unreadable[0] if unreadable else "the dataset has no images to measure on")
    truth = coco_document(images, annotations, dataset.categories)
    return Evaluation(
        images=len(images),
        objects=sum(not a.get("iscrowd") for a in annotations),
        box=score(truth, results, "bbox"),
        mask=score(truth, results, "segm") if masks else None,
        confusion=confusion,
        cityscapes=streets.scores() if streets is not None else None,
        unreadable=tuple(unreadable),
    )


def matching(own: tuple[Category, ...], theirs: tuple[Category, ...]) -> dict[int, int]:
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
    precision: np.ndarray = counting.eval["precision"][
        :, :, :, :, 2
    ]  # [10, 101, K, 4]: all, small, medium, large
    recall: np.ndarray = counting.eval["recall"][:, :, 0, 2]  # [10, K]
    names = {c["id"]: str(c["name"]) for c in truth["categories"]}
    per_category = {}
    for k, number in enumerate(counting.params.catIds):
        parts = [precision[:, :, k, 0], precision[0, :, k, 0], precision[5, :, k, 0]]  # all, IoU .5, IoU .75
        parts += [precision[:, :, k, area] for area in (1, 2, 3)]
        values = [_mean(part) for part in (*parts, recall[:, k])]
        per_category[names[number]] = dict(zip(CATEGORY_FIGURES, values, strict=True))
    figures = dict(zip(FIGURES, (float(value) for value in counting.stats), strict=True))
    return Scores(figures, per_category, precision[:, :, :, 0])


def _mean(counts: np.ndarray) -> float:
    counted = counts[counts > -1]
    return float(counted.mean()) if counted.size else -1.0
