"""What training changes about a sample: mirrored, scaled by far, with objects of another sample pasted on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from model.data import Sample

# ImageNet's mean colour, zero after normalisation: what fills an image that was made smaller than its canvas.
FILL = (124, 116, 104)
LEAST_PIXELS = 16  # of an object that cropping or pasting left over


def mirrored(sample: Sample) -> Sample:
    """The sample, left and right exchanged."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes
    boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return replace(sample, pixels=sample.pixels[:, ::-1], boxes=boxes, masks=sample.masks[:, :, ::-1])


def jittered(sample: Sample, rng: Generator, scales: tuple[float, float], side: int) -> Sample:
    """Large-scale jitter (Ghiasi et al., "Simple Copy-Paste", section 3): a random scale on a square canvas.

    scales: 1.0 fits the image into the canvas. side: of the canvas, pixels. A larger image is cropped at random, a
    smaller one lies at a random place. Objects of which too little is left are dropped.
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
    masks = np.zeros((len(sample.masks), side, side), np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size[0], side), min(top + size[1], side)
    canvas[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
    for mask, before in zip(masks, sample.masks, strict=True):
        scaled = np.asarray(
            Image.fromarray(np.ascontiguousarray(before)).resize(size, Image.Resampling.NEAREST)
        )
        mask[y0:y1, x0:x1] = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
    return _remaining(replace(sample, pixels=canvas, masks=masks))


def pasted(sample: Sample, other: Sample, rng: Generator) -> Sample:
    """Copy-paste (Ghiasi et al., section 3): a random part of another sample's objects on top of this one.

    Both are of one size. What the new objects hide is taken from the masks below them.
    """
    chosen = np.flatnonzero(rng.random(len(other.masks)) < rng.uniform(0, 1))
    if not len(chosen):
        return sample
    new = other.masks[chosen]
    cover: NDArray[np.bool_] = np.asarray(new.any(axis=0))  # [H, W]
    pixels = np.where(cover[..., None], other.pixels, sample.pixels)
    masks = np.concatenate([sample.masks * ~cover, new]).astype(np.uint8)
    labels = np.concatenate([sample.labels, other.labels[chosen]])
    return _remaining(replace(sample, pixels=pixels, labels=labels, masks=masks))


def _remaining(sample: Sample) -> Sample:
    """The sample with the objects that can still be seen, and boxes around what can be seen of them."""
    kept = [n for n, mask in enumerate(sample.masks) if int(mask.sum()) >= LEAST_PIXELS]
    boxes = np.zeros((len(kept), 4), np.float32)
    for row, n in enumerate(kept):
        ys, xs = np.flatnonzero(sample.masks[n].any(1)), np.flatnonzero(sample.masks[n].any(0))
        boxes[row] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return replace(sample, boxes=boxes, labels=sample.labels[kept], masks=sample.masks[kept], visibility=None)
