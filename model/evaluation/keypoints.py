"""COCO's AP and AR of keypoints: as for boxes, with the similarity of keypoints (OKS) in the place of IoU.

The protocol is COCO's (cocodataset.org, "Keypoint Evaluation"), computed by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data.person import PERSON_KEYPOINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Keypoints

# pycocotools' ten figures, in its order.
FIGURES = (
    "AP", "AP50", "AP75", "AP medium", "AP large", "AR 20", "AR50 20", "AR75 20", "AR medium", "AR large",
)  # fmt: skip
# Of an image, that count.
DETECTIONS = 20
# How far people's labels of COCO's keypoints of a person lie apart, as parts of the object's size.
_NOSE, _EYE, _EAR, _SHOULDER, _ELBOW, _WRIST, _HIP, _KNEE, _ANKLE = (
    0.026, 0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089,
)  # fmt: skip
_PERSON_SIGMAS = (
    _NOSE,
    *(sigma for sigma in (_EYE, _EAR, _SHOULDER, _ELBOW, _WRIST, _HIP, _KNEE, _ANKLE) for _ in (0, 1)),
)
# Of keypoints for which nobody has measured it.
SIGMA = 0.05


def sigmas(keypoints: Keypoints) -> tuple[float, ...]:
    """COCO's for the keypoints of a person, SIGMA for each of any others."""
    if keypoints.names == PERSON_KEYPOINTS.names:
        return _PERSON_SIGMAS
    return (SIGMA,) * len(keypoints.names)


def score_keypoints(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], deviations: Sequence[float]
) -> tuple[dict[str, float], dict[str, dict[str, float]], np.ndarray]:
    """COCO's figures of keypoints by FIGURES; those of each category; and precision [10, 101, K] over all areas.

    Figures are from 0 to 1, and -1 where there is nothing to count: objects without labelled keypoints do not count.

    Args:
        truth: a document in COCO's format, with `keypoints` and `num_keypoints`.
        results: COCO results records with `keypoints`; the 20 best of an image count.
        deviations: of each keypoint, as `sigmas` gives them.
    """
    from pycocotools.coco import COCO  # noqa: PLC0415 - comes with the extra `train`
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415 - comes with the extra `train`

    kept = [{key: r[key] for key in ("image_id", "category_id", "keypoints", "score")} for r in results]
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        # loadRes rejects an empty list.
        predicted = annotated.loadRes(kept) if kept else COCO()
        if not kept:
            predicted.dataset = {**truth, "annotations": []}
            predicted.createIndex()
        evaluator = COCOeval(annotated, predicted, "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(deviations)
        evaluator.evaluate()
        evaluator.accumulate()
    # The areas are: all, medium, large; the last axis is the number of detections.
    precision: np.ndarray = evaluator.eval["precision"][..., 0]  # [10, 101, K, 3]
    recall: np.ndarray = evaluator.eval["recall"][..., 0]  # [10, K, 3]
    names = {c["id"]: str(c["name"]) for c in truth["categories"]}
    per_category = {
        names[number]: _figures(precision[:, :, k : k + 1], recall[:, k : k + 1])
        for k, number in enumerate(evaluator.params.catIds)
    }
    return _figures(precision, recall), per_category, precision[..., 0]


def _figures(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    parts = [
        part
        for values in (precision, recall)
        # At all thresholds, at an OKS of 0.5 and of 0.75; then of the areas.
        for part in (values[..., 0], values[0, ..., 0], values[5, ..., 0], values[..., 1], values[..., 2])
    ]
    return dict(zip(FIGURES, map(_mean, parts), strict=True))


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
