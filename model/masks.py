"""Instance masks from the mask head's small maps: pasted into the box and encoded, never an N × H × W stack.

A pixel is foreground exactly where torchvision's `paste_masks_in_image` on the CPU exceeds the threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from model.rle import Rle, decode, encode, from_changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Crop", "Rle", "crops", "decode", "encode", "paste"]


class Crop(NamedTuple):
    """The part of the image that one mask's box covers."""

    left: int  # of the bitmap's first column, pixels of the image
    top: int  # of its first row
    bitmap: NDArray[np.bool_]  # [h, w], both 0 where the box does not touch the image


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> list[Rle]:
    """Masks of one image as COCO run lengths (Mask R-CNN, section 3.1, "mask representation").

    probabilities: [N, M, M] float32, one map per box (M is 28 in the paper). boxes: [N, 4] float32 xyxy in
    pixels of the image. size: (height, width) of the image. threshold: in [0, 1), foreground is above it.
    A box that does not touch the image gives an empty mask; torchvision raises for most of them.
    """
    height, width = size
    changes = []
    for index, (left, top, bitmap) in enumerate(crops(probabilities, boxes, size, threshold)):
        closed = np.pad(bitmap, ((1, 1), (0, 0)))
        column, row = np.nonzero((closed[1:] != closed[:-1]).T)
        changes.append(index * (height * width + 1) + (column + left) * height + row + top)
    return from_changes(np.concatenate(changes) if changes else np.empty(0, np.int64), len(changes), size)


def crops(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[Crop]:
    """The same masks as bitmaps, each cut to its box and zero outside. Arguments as for `paste`."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), not {threshold}")
    height, width = size
    padded = functional.pad(probabilities.float(), (1, 1, 1, 1))  # [N, M + 2, M + 2]
    scale = padded.shape[-1] / probabilities.shape[-1]
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    corners = torch.cat([centre - half, centre + half], dim=1).to(
        torch.int64
    )  # [N, 4] xyxy, both ends inside
    for grid, (x0, y0, x1, y1) in zip(padded, corners.tolist(), strict=True):
        left, right = max(x0, 0), min(x1 + 1, width)
        top, bottom = max(y0, 0), min(y1 + 1, height)
        if left >= right or top >= bottom:
            yield Crop(0, 0, np.zeros((0, 0), np.bool_))
            continue
        pasted = functional.interpolate(
            grid[None, None], size=(y1 - y0 + 1, x1 - x0 + 1), mode="bilinear", align_corners=False
        )[0, 0, top - y0 : bottom - y0, left - x0 : right - x0]
        yield Crop(left, top, (pasted > threshold).numpy())
