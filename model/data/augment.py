"""Augmentation of training samples: horizontal flip, large-scale jitter and copy-paste.

torchvision.transforms.v2 is not used: its transforms draw from torch's global generator, but a sample must depend only
on the generator that it is given, and importing it takes each worker 1.2 s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.data.masks import InstanceMasks

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from model.data import Sample

# ImageNet's mean colour, which normalisation turns into 0: the canvas around a small image.
FILL = (124, 116, 104)
# Objects with fewer visible pixels after cropping or pasting are dropped.
MIN_PIXELS = 16


def flip(sample: Sample) -> Sample:
    """Flip a sample horizontally."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes
    boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return replace(
        sample, pixels=sample.pixels[:, ::-1], boxes=boxes, masks=InstanceMasks.of(sample.masks).mirrored()
    )


def jitter_scale(sample: Sample, rng: Generator, scales: tuple[float, float], side: int) -> Sample:
    """Large-scale jitter (Ghiasi et al., "Simple Copy-Paste", section 3): a random scale on a square canvas.

    An image larger than the canvas is cropped at random, a smaller one is placed at random. Objects with fewer than
    MIN_PIXELS visible pixels are dropped.

    Args:
        sample: the image and its objects.
        rng: draws scale and place.
        scales: smallest and largest scale; 1.0 fits the image into the canvas.
        side: of the canvas, pixels.
    """
    height, width = sample.pixels.shape[:2]
    scale = rng.uniform(*scales) * side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.asarray(
        Image.fromarray(np.ascontiguousarray(sample.pixels)).resize(size, Image.Resampling.BILINEAR)
    )
    slack = side - size[0], side - size[1]
    left, top = (int(rng.integers(min(0, s), max(0, s) + 1)) for s in slack)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = FILL
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size[0], side), min(top + size[1], side)
    canvas[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]

    def place(before: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scaled = np.asarray(
            Image.fromarray(np.ascontiguousarray(before)).resize(size, Image.Resampling.NEAREST)
        )
        mask = np.zeros((side, side), np.uint8)
        mask[y0:y1, x0:x1] = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
        return mask

    masks = InstanceMasks.of(sample.masks).map(place, (side, side))
    return _keep_visible(replace(sample, pixels=canvas, masks=masks))


def copy_paste(sample: Sample, other: Sample, rng: Generator) -> Sample:
    """Copy-paste (Ghiasi et al., section 3): paste random objects of another sample onto this one.

    The new objects cover the masks below them.

    Args:
        sample: what to paste onto.
        other: whose objects to paste; of the same size.
        rng: draws which objects.
    """
    chosen = np.flatnonzero(rng.random(len(other.masks)) < rng.uniform(0, 1))
    if not len(chosen):
        return sample
    new = InstanceMasks.of(other.masks)[chosen]
    cover = new.union()  # [H, W]
    pixels = np.where(cover[..., None], other.pixels, sample.pixels)
    below = InstanceMasks.of(sample.masks).map(lambda mask: mask * ~cover, new.size)
    masks = InstanceMasks([*below.crops, *new.crops], new.size)
    labels = np.concatenate([sample.labels, other.labels[chosen]])
    return _keep_visible(replace(sample, pixels=pixels, labels=labels, masks=masks))


def _keep_visible(sample: Sample) -> Sample:
    """Drop objects that are no longer visible, and fit the boxes of the others to their masks."""
    masks = InstanceMasks.of(sample.masks)
    kept = np.flatnonzero(masks.areas() >= MIN_PIXELS)
    masks = masks[kept]
    return replace(sample, boxes=masks.boxes(), labels=sample.labels[kept], masks=masks, visibility=None)
