"""Resizing of bytes as Detectron2 and MMDetection do it, where torchvision resizes floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def _resize_with_pillow(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] uint8: bilinear with antialiasing, as Detectron2's ResizeTransform."""
    if image.shape[:2] == size:
        return torch.from_numpy(np.require(image, requirements=("C", "W")))
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


# OpenCV's weights of bytes are whole numbers of 2^-11.
COEFFICIENT = 1 << 11


def _resize_as_opencv(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] uint8: bilinear without antialiasing in whole numbers, as cv2.resize, which MMDetection calls."""
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))
    before = image.shape[:2]
    if before == size:
        return pixels
    # OpenCV takes the mean of four pixels here.
    if before == (2 * size[0], 2 * size[1]):
        sums = pixels.view(size[0], 2, size[1], 2, 3).sum((1, 3), dtype=torch.int32)
        return ((sums + 2) >> 2).to(torch.uint8)
    left, right, first, second = _weights(before[1], size[1], snap=True)
    lines = pixels[:, left].int() * first[:, None] + pixels[:, right].int() * second[:, None]
    lines >>= 4
    upper, lower, first, second = _weights(before[0], size[0], snap=False)
    resized = (lines[upper] * first[:, None, None]) >> 16
    resized += (lines[lower] * second[:, None, None]) >> 16
    return ((resized + 2) >> 2).to(torch.uint8)


def _weights(before: int, after: int, *, snap: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `after` places the two of `before` that it lies between, and their weights as OpenCV rounds them.

    snap: beyond the first and the last of `before` only that one counts, not its double in two roundings.
    """
    place = ((np.arange(after) + 0.5) * (1 / (after / before)) - 0.5).astype(np.float32)
    low = np.floor(place).astype(np.int64)
    part = place - low.astype(np.float32)
    if snap:
        part[(low < 0) | (low >= before - 1)] = 0
    weights = [np.rint(each * COEFFICIENT).astype(np.int32) for each in (np.float32(1) - part, part)]
    places = [np.clip(low + n, 0, before - 1) for n in (0, 1)]
    upper, lower, first, second = (torch.from_numpy(each) for each in (*places, *weights))
    return upper, lower, first, second


# Frameworks that resize bytes, where torchvision resizes floats: what is rounded and what is antialiased differs.
RESIZE_BYTES = {"detectron2": _resize_with_pillow, "mmdetection": _resize_as_opencv}
