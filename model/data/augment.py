"""Augmentation of training samples that moves objects: flips, rotations, large-scale jitter and copy-paste.

Whatever moves pixels moves masks by the same rule, pixel for pixel, and keypoints; boxes are those of the masks.
appearance.py changes the pixels alone.

torchvision.transforms.v2 is not used: its transforms draw from torch's global generator, but a sample must depend only
on the generator that it is given, and importing it takes each worker 1.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.data import keypoints
from model.data.appearance import Appearance
from model.data.masks import InstanceMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    from model.data import Sample

# ImageNet's mean colour, which normalisation turns into 0: the canvas around a small image.
FILL = (124, 116, 104)
# Objects with fewer visible pixels after cropping or pasting are dropped.
MIN_PIXELS = 16


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How samples are changed. The defaults change nothing but left and right, as the paper and torchvision do."""

    # Probability that left and right are exchanged.
    flip: float = 0.5
    # Probability that top and bottom are exchanged.
    flip_vertical: float = 0.0
    # Probability of a rotation by one, two or three quarter turns.
    rotate: float = 0.0
    appearance: Appearance = field(default_factory=Appearance)
    # Least and largest scale on the canvas; None: no jitter.
    jitter: tuple[float, float] | None = None
    # Of the canvas, pixels.
    side: int = 1024
    # Probability that another image's objects are pasted on; only with jitter.
    copy_paste: float = 0.0

    def __call__(self, sample: Sample, rng: Generator, other: Callable[[], Sample]) -> Sample:
        """Change a sample.

        Args:
            sample: the image and its objects.
            rng: draws every change. What is turned off draws nothing.
            other: draws another sample, whose objects may be pasted.
        """
        sample = self._change(sample, rng)
        if self.jitter is not None and rng.random() < self.copy_paste:
            sample = copy_paste(sample, self._change(other(), rng), rng)
        return sample

    def _change(self, sample: Sample, rng: Generator) -> Sample:
        if rng.random() < self.flip:
            sample = flip(sample)
        if self.flip_vertical and rng.random() < self.flip_vertical:
            # Upside down is mirrored and turned by half.
            sample = rotate(flip(sample), 2)
        if self.rotate and rng.random() < self.rotate:
            sample = rotate(sample, int(rng.integers(1, 4)))
        sample = replace(sample, pixels=self.appearance(sample.pixels, rng))
        if self.jitter is not None:
            sample = jitter_scale(sample, rng, self.jitter, self.side)
        return sample


def flip(sample: Sample) -> Sample:
    """Flip a sample horizontally."""
    width = sample.pixels.shape[1]
    sample = keypoints.mirror(sample)
    boxes = sample.boxes
    boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return replace(
        sample, pixels=sample.pixels[:, ::-1], boxes=boxes, masks=InstanceMasks.of(sample.masks).flip()
    )


def rotate(sample: Sample, quarters: int) -> Sample:
    """Rotate a sample counterclockwise by 0 to 3 quarter turns."""
    sample = keypoints.turn(sample, quarters)
    boxes = sample.boxes
    for turn in range(quarters):
        across = sample.pixels.shape[1 - turn % 2]
        boxes = np.stack([boxes[:, 1], across - boxes[:, 2], boxes[:, 3], across - boxes[:, 0]], 1)
    pixels = np.rot90(sample.pixels, quarters)
    return replace(sample, pixels=pixels, boxes=boxes, masks=InstanceMasks.of(sample.masks).rotate(quarters))


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
    left, top = (int(rng.integers(min(0, s), max(0, s) + 1)) for s in (side - size[0], side - size[1]))
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size[0], side), min(top + size[1], side)
    # What the canvas shows of the image, in the image's own pixels.
    shown = (
        [(edge - left) * width / size[0] for edge in (x0, x1)],
        [(edge - top) * height / size[1] for edge in (y0, y1)],
    )
    part = Image.fromarray(np.ascontiguousarray(sample.pixels)).resize(
        (x1 - x0, y1 - y0),
        Image.Resampling.BILINEAR,
        box=(shown[0][0], shown[1][0], shown[0][1], shown[1][1]),
    )
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = FILL
    canvas[y0:y1, x0:x1] = np.asarray(part)
    rows = _nearest(np.arange(y0 - top, y1 - top), size[1], height)
    columns = _nearest(np.arange(x0 - left, x1 - left), size[0], width)
    masks = InstanceMasks.of(sample.masks).take(rows, columns, (side, side), (y0, x0))
    factors = size[0] / width, size[1] / height
    sample = keypoints.scale(sample, factors, (left, top), (side, side))
    return _keep_visible(replace(sample, pixels=canvas, masks=masks))


def _nearest(numbers: NDArray[np.int64], after: int, before: int) -> NDArray[np.int64]:
    """Which of `before` pixels is nearest to each of these pixels of an image that is resized to `after`."""
    return ((2 * numbers + 1) * before) // (2 * after)


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
    below = InstanceMasks.of(sample.masks).without(cover)
    masks = InstanceMasks([*below.crops, *new.crops], new.size)
    labels = np.concatenate([sample.labels, other.labels[chosen]])
    points = None
    if sample.keypoints is not None and other.keypoints is not None:
        points = np.concatenate([sample.keypoints, other.keypoints[chosen]])
    return _keep_visible(replace(sample, pixels=pixels, labels=labels, masks=masks, keypoints=points))


def _keep_visible(sample: Sample) -> Sample:
    """Drop objects that are no longer visible, and fit the boxes of the others to their masks."""
    masks = InstanceMasks.of(sample.masks)
    kept = np.flatnonzero(masks.areas() >= MIN_PIXELS)
    masks = masks[kept]
    points = None if sample.keypoints is None else sample.keypoints[kept]
    return replace(
        sample,
        boxes=masks.boxes(),
        labels=sample.labels[kept],
        masks=masks,
        visibility=None,
        keypoints=points,
    )
