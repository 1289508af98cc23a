"""Evaluation of a model on a dataset, through the same engine that serves: COCO's AP and AR.

The protocol is COCO's (cocodataset.org, "Detection Evaluation"), computed by pycocotools, which comes with the extra
`train`. matching.py adds the figures that microscopy uses, and on Cityscapes cityscapes.py those of its own protocol.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.data import DatasetError, keypoints_of
from model.data.cityscapes import Cityscapes
from model.data.coco import coco_document
from model.evaluation.cityscapes import CityscapesAp
from model.evaluation.confusion import SCORE_THRESHOLD, Confusion
from model.evaluation.keypoints import score_keypoints, sigmas
from model.evaluation.matching import Matching
from model.inference.tiled import segment_tiled
from model.instances import Instances, Options

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from model.data import Category, Dataset, Sample
    from model.evaluation.cityscapes import CityscapesScores
    from model.evaluation.matching import MatchingScores
    from model.inference.engine import Engine
    from model.inference.tiling import Tiling

# pycocotools' twelve figures, in its order.
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

# Those that are defined for a single category.
CATEGORY_FIGURES = (*FIGURES[:6], "AR 100")
# Detections of an image that COCO counts. Of models that find more, as many as they find count, in an "AR N" too.
STANDARD_DETECTIONS = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of boxes, or of masks, from 0 to 1; -1 if there are no objects to count."""

    # By FIGURES, and "AR N" where N detections of an image were counted, more than 100.
    figures: dict[str, float]
    # Category name → figures by CATEGORY_FIGURES.
    per_category: dict[str, dict[str, float]]
    # At IoU .5:.05:.95, recall 0:.01:1 and each category, for all areas and as many detections as were counted.
    precision: np.ndarray  # [10, 101, K]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of a model on a dataset."""

    images: int
    # Annotated objects, without crowds.
    objects: int
    box: Scores
    # None for a model without masks.
    mask: Scores | None
    # At the score threshold.
    confusion: Confusion
    # TP / (TP + FP + FN), F1 and panoptic quality at the score threshold; None for a model without masks.
    matching: MatchingScores | None = None
    # Only for a model with masks on Cityscapes.
    cityscapes: CityscapesScores | None = None
    # Images that were skipped, and why.
    unreadable: tuple[str, ...] = ()
    # Of an image, that COCO's figures count: 100, or as many as the model finds.
    detections: int = STANDARD_DETECTIONS[-1]
    # None for a model without keypoints, and for data without a labelled one.
    keypoints: Scores | None = None

    def ap(self) -> dict[str, float]:
        """The figures that are stored in a weights file."""
        figures = {"box": self.box.figures["AP"], "box50": self.box.figures["AP50"]}
        if self.mask is not None:
            figures |= {"mask": self.mask.figures["AP"], "mask50": self.mask.figures["AP50"]}
        if self.keypoints is not None:
            named = {"keypoints": self.keypoints.figures["AP"], "keypoints50": self.keypoints.figures["AP50"]}
            figures |= named
        return {name: round(value, 4) for name, value in figures.items()}

    def by_kind(self) -> dict[str, Scores]:
        """The figures of boxes and, if there are any, of masks and keypoints."""
        kinds = {"box": self.box, "mask": self.mask, "keypoints": self.keypoints}
        return {kind: scores for kind, scores in kinds.items() if scores is not None}


def evaluate(
    engine: Engine,
    dataset: Dataset,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    tiling: Tiling | None = None,
    on_image: Callable[[int, Sample, Instances], None] | None = None,
) -> Evaluation:
    """Segment every image of a dataset, one at a time, and compare the instances with the annotations.

    Categories are matched by name, so that a model may number them differently. Instances of categories that the
    dataset lacks do not count.

    Args:
        engine: the model.
        dataset: the annotated images. Unreadable ones are skipped and listed in the result.
        score_threshold: of the detections that the confusion of categories and the figures of matching count; COCO's
            count all.
        tiling: how images are cut; None: not. COCO's figures then count all instances of an image, but those of
            keypoints 20 as ever.
        on_image: is called with each index, sample and prediction.

    Raises DatasetError if no image can be read, TilingError.
    """
    ids = match_categories(engine.model.categories, dataset.categories)
    options = Options(score_threshold=0.0, categories=frozenset(ids))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    masks = engine.model.architecture.mask_convs > 0 and getattr(dataset, "has_outlines", True)
    keypoints = engine.model.keypoints
    if keypoints is not None:
        theirs = keypoints_of(dataset)
        keypoints = keypoints if theirs is not None and theirs.names == keypoints.names else None
    detections = max(engine.model.max_instances, STANDARD_DETECTIONS[-1])
    confusion = Confusion(dataset.categories, score_threshold)
    matching = Matching(score_threshold)
    cityscapes = CityscapesAp() if isinstance(dataset, Cityscapes) and masks else None
    unreadable: list[str] = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except DatasetError as error:
            unreadable.append(str(error))
            continue
        height, width = sample.pixels.shape[:2]
        images.append({"id": sample.image_id, "height": height, "width": width})
        truth = dataset.annotations(sample)
        annotations += truth
        predicted = predict(engine, sample.pixels, options, tiling)
        if tiling is not None:
            detections = max(detections, len(predicted))
        masks = masks and predicted.has_masks
        records = coco_results(predicted, sample.image_id, ids)
        results += records
        confusion.add(index, truth, records, "segm" if masks else "bbox")
        if masks:
            matching.add(truth, records, (height, width))
        if cityscapes is not None and isinstance(dataset, Cityscapes):
            cityscapes.add(dataset.instance_ids(index), predicted, ids)
        if on_image is not None:
            on_image(index, sample, predicted)
    if not images:
        raise DatasetError(unreadable[0] if unreadable else "the dataset has no images to evaluate on")
    document = coco_document(images, annotations, dataset.categories)
    pointed: Scores | None = None
    if keypoints is not None and any(a.get("num_keypoints") and not a.get("iscrowd") for a in annotations):
        # Objects whose file says nothing of them, as in other data than it began with.
        annotations_pointed = [{"num_keypoints": 0, **a} for a in document["annotations"]]
        pointed = Scores(
            *score_keypoints(document | {"annotations": annotations_pointed}, results, sigmas(keypoints))
        )
    return Evaluation(
        images=len(images),
        objects=sum(not a.get("iscrowd") for a in annotations),
        box=score(document, results, "bbox", detections),
        mask=score(document, results, "segm", detections) if masks else None,
        confusion=confusion,
        matching=matching.scores() if masks else None,
        cityscapes=cityscapes.scores() if cityscapes is not None else None,
        unreadable=tuple(unreadable),
        detections=detections,
        keypoints=pointed,
    )


def predict(engine: Engine, pixels: np.ndarray, options: Options, tiling: Tiling | None) -> Instances:
    """The instances in an image.

    Args:
        engine: the model.
        pixels: [H, W, 3] uint8.
        options: of the image.
        tiling: how it is cut; None: not.
    """
    if tiling is None:
        return engine.segment([pixels], [options])[0]
    return segment_tiled(engine, pixels, options, tiling)


def match_categories(own: tuple[Category, ...], theirs: tuple[Category, ...]) -> dict[int, int]:
    """The ids of the model's categories → the ids of the dataset's categories of the same name."""
    by_name = {category.name: category.id for category in theirs}
    return {category.id: by_name[category.name] for category in own if category.name in by_name}


def coco_results(instances: Instances, image_id: int, ids: dict[int, int]) -> list[dict[str, Any]]:
    """COCO results records of one image, unrounded.

    Args:
        instances: the predictions.
        image_id: of the image in the annotations.
        ids: the model's category ids → those of the annotations.
    """
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
    if instances.has_masks:
        for record, rle in zip(records, instances.rles(), strict=True):
            record["segmentation"] = rle.to_coco()
    if instances.keypoints is not None:
        for record, points in zip(records, instances.keypoints.flatten(1).tolist(), strict=True):
            record["keypoints"] = points
    return records


def score(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str,
    detections: int = STANDARD_DETECTIONS[-1],
) -> Scores:
    """Compute COCO's figures with pycocotools.

    Args:
        truth: a document in COCO's instances format.
        results: COCO results records.
        kind: "bbox" or "segm".
        detections: of an image, that count for all figures but "AR 1", "AR 10" and "AR 100"; 100 or more.
    """
    from pycocotools.coco import COCO  # noqa: PLC0415 - comes with the extra `train`
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415 - comes with the extra `train`

    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        # From records with boxes, loadRes takes the area of a mask from its box.
        hidden = {"segm": "bbox", "bbox": "segmentation"}[kind], "keypoints"
        kept = [{k: v for k, v in r.items() if k not in hidden} for r in results]
        predicted = annotated.loadRes(kept) if kept else COCO()
        if not kept:
            # loadRes rejects an empty list, which a model without any detection produces.
            predicted.dataset = {**truth, "annotations": []}
            predicted.createIndex()
        evaluator = COCOeval(annotated, predicted, kind)
        evaluator.params.maxDets = sorted({*STANDARD_DETECTIONS, detections})
        evaluator.evaluate()
        evaluator.accumulate()
    # The areas are: all, small, medium, large. The last axis of pycocotools' arrays is the detections of an image.
    precision: np.ndarray = evaluator.eval["precision"][..., -1]  # [10, 101, K, 4]
    recalls: np.ndarray = evaluator.eval["recall"]  # [10, K, 4, M]
    names = {c["id"]: str(c["name"]) for c in truth["categories"]}
    per_category = {}
    for k, number in enumerate(evaluator.params.catIds):
        # AP, AP at IoU 0.5 and AP at IoU 0.75.
        parts = [precision[:, :, k, 0], precision[0, :, k, 0], precision[5, :, k, 0]]
        parts += [precision[:, :, k, area] for area in (1, 2, 3)]
        values = [_mean(part) for part in (*parts, recalls[:, k, 0, 2])]
        per_category[names[number]] = dict(zip(CATEGORY_FIGURES, values, strict=True))
    # pycocotools' own summary wants exactly three numbers of detections, the last of which is 100.
    counted = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    counted += [precision[..., area] for area in (1, 2, 3)]
    counted += [recalls[:, :, 0, n] for n in range(3)]
    counted += [recalls[:, :, area, -1] for area in (1, 2, 3)]
    figures = dict(zip(FIGURES, map(_mean, counted), strict=True))
    if detections > STANDARD_DETECTIONS[-1]:
        figures[f"AR {detections}"] = _mean(recalls[:, :, 0, -1])
    return Scores(figures, per_category, precision[:, :, :, 0])


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
