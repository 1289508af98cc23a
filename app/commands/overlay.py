"""An answer drawn on its image, with the code that the service draws with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskserve import AnswerError
from model.images.decode import decode, encode_jpeg, encode_png
from model.images.overlay import overlay
from model.instances import Instances
from model.masks.paste import Crop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from maskserve import Result


def draw_overlay(
    content: bytes, result: Result, suffix: str = ".png", model: Mapping[str, Any] | None = None
) -> bytes:
    """The overlay as a file. Without masks, boxes are drawn. Raises ImageError, AnswerError.

    Args:
        content: the image's file.
        result: its instances.
        suffix: of the overlay's file, which tells its format: ".png", ".jpg" or ".jpeg".
        model: as `Client.model` gives it, to draw keypoints by: which are shown, and which are joined.
    """
    known = model or {}
    keypoints = [k for instance in result.instances if (k := instance.keypoints) is not None]
    scores = [s for instance in result.instances if (s := instance.keypoint_scores) is not None]
    pointed = 0 < len(result.instances) == len(keypoints) == len(scores)
    joined: list[list[int]] = next(
        (category.get("skeleton", []) for category in known.get("categories", [])), []
    )
    # COCO counts keypoints from 1.
    skeleton = [(first - 1, second - 1) for first, second in joined] if pointed else []
    if pointed:
        _check_keypoints(keypoints, scores, skeleton, 2 * max(result.width, result.height))
    instances = Instances(
        size=(result.height, result.width),
        boxes=torch.from_numpy(result.boxes.astype(np.float32)),
        scores=torch.from_numpy(result.scores.astype(np.float32)),
        labels=torch.from_numpy(result.category_ids),
        probabilities=None,
        keypoints=torch.tensor(np.stack(keypoints), dtype=torch.float32) if pointed else None,
        keypoint_scores=torch.tensor(np.stack(scores), dtype=torch.float32) if pointed else None,
        keypoints_from=float((known.get("keypoints") or {}).get("shown_from", 0.0)),
    )
    masked = all(instance.has_mask for instance in result.instances)
    # `overlay` sorts the masks, so it needs all at once; each is cropped to its own pixels.
    crops = [Crop(*instance.crop) for instance in result.instances] if masked else None
    names = {instance.category_id: instance.category for instance in result.instances}
    drawn = overlay(decode(content), instances, names, crops, skeleton=skeleton)
    return encode_png(drawn) if suffix.lower() == ".png" else encode_jpeg(drawn)


def _check_keypoints(
    keypoints: Sequence[NDArray[np.float64]],
    scores: Sequence[NDArray[np.float64]],
    skeleton: Sequence[tuple[int, int]],
    farthest: float,
) -> None:
    """Raise AnswerError unless keypoints can be drawn.

    Args:
        keypoints: [K, 3] of each instance.
        scores: [K] of each instance.
        skeleton: pairs of keypoints that lines join, from 0.
        farthest: from the image's corner that a keypoint may be, pixels across or down.
    """
    count = len(keypoints[0])
    fit = all(len(points) == len(values) == count for points, values in zip(keypoints, scores, strict=True))
    near = all((np.abs(points) <= farthest).all() for points in keypoints)
    if not (fit and near and all(0 <= end < count for pair in skeleton for end in pair)):
        raise AnswerError("the keypoints of the answer do not fit one another, the model or the image")
