"""An answer drawn on its image, with the code that the service draws with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model.images.decode import decode, encode_jpeg, encode_png
from model.images.overlay import overlay
from model.instances import Instances
from model.masks.paste import Crop

if TYPE_CHECKING:
    from maskserve import Result


def draw_overlay(content: bytes, result: Result, suffix: str = ".png") -> bytes:
    """The overlay as a file. Without masks, boxes alone are drawn. Raises ImageError.

    Args:
        content: the image's file.
        result: its instances.
        suffix: of the overlay's file, which tells its format: ".png", ".jpg" or ".jpeg".
    """
    instances = Instances(
        size=(result.height, result.width),
        boxes=torch.from_numpy(result.boxes.astype(np.float32)),
        scores=torch.from_numpy(result.scores.astype(np.float32)),
        labels=torch.from_numpy(result.category_ids),
        probabilities=None,
    )
    masked = all({"segmentation", "mask"} & instance.record.keys() for instance in result.instances)
    # `overlay` sorts the masks, so it needs all at once; each is cropped to its own pixels.
    crops = [Crop(*instance.crop) for instance in result.instances] if masked else None
    names = {instance.category_id: instance.category for instance in result.instances}
    drawn = overlay(decode(content), instances, names, crops)
    return encode_png(drawn) if suffix.lower() == ".png" else encode_jpeg(drawn)
