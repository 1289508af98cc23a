"""An answer drawn on its image, with the code that the service draws with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.images.decode import decode, encode_jpeg, encode_png
from model.images.overlay import overlay
from model.instances import Instances
from model.masks.paste import Crop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maskserve import Result


def draw_overlay(
    content: bytes, result: Result, suffix: str = ".png", model: Mapping[str, Any] | None = None
) -> bytes:
    """The overlay as a file. Without masks, boxes are drawn. Raises ImageError.

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
    joined: list[list[int]] = next(
        (category.get("skeleton", []) for category in known.get("categories", [])), []
    )
    masked = all(instance.has_mask for instance in result.instances)
    # `overlay` sorts the masks, so it needs all at once; each is cropped to its own pixels.
    crops = [Crop(*instance.crop) for instance in result.instances] if masked else None
    names = {instance.category_id: instance.category for instance in result.instances}
    # COCO counts keypoints from 1.
    skeleton = [(first - 1, second - 1) for first, second in joined] if pointed else []
    drawn = overlay(decode(content), instances, names, crops, skeleton=skeleton)
    return encode_png(drawn) if suffix.lower() == ".png" else encode_jpeg(drawn)
