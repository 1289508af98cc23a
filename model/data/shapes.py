"""Seeded, endless scenes of ten kinds of shapes with pixel-exact visible masks: the dataset that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.data import Category, DatasetError, Sample
from model.data.drawing import (
    background,
    blur,
    colour,
    cut_out,
    fill,
    natural_fill,
    paint_things,
    scribble,
    simulate_camera,
)
from model.data.outlines import DISTRACTORS, SHAPES, coverage, distort, distractor, letter_coverage, outline
from model.data.scenes import Scenes
from model.images.decode import ImageError, decode
from model.images.files import find_images, nothing_found
from model.masks.boxes import mask_to_box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.random import Generator

CATEGORIES = tuple(Category(number, name) for number, name in enumerate(SHAPES, start=1))

Window = tuple[slice, slice]

# An object is never hidden further than this part of its area.
LEAST_VISIBLE = 0.5
# Nor to fewer visible pixels.
LEAST_PIXELS = 40
# The part of the scenes without shapes.
EMPTY = 0.04
# The part of the scenes that are drawn on a photo, if there are photos.
PHOTO_PART = 0.4
# The part of those without shapes, so that models learn what photos hold.
EMPTY_PHOTOS = 0.35


@dataclass(slots=True)
class _Layer:
    """One drawn thing: a shape (label > 0) or a distractor (label 0)."""

    label: int
    # Pixels of the whole thing, also what lies outside the image or behind others.
    area: int
    # Pixels that can be seen so far.
    visible: int


def training_scenes(backgrounds: Path | None = None) -> Shapes:
    """The scenes that the bundled model was trained on; no larger than needed, because drawing costs time.

    backgrounds: a folder of photos to draw some of the scenes on. Raises DatasetError for one without photos.
    """
    photos = () if backgrounds is None else photos_in(backgrounds)
    return Shapes(seed=1, length=50_000, sides=(200, 600), things=0.5, photos=photos)


def photos_in(folder: Path) -> tuple[Path, ...]:
    """The photos of a folder, by name. Raises DatasetError."""
    try:
        found, others = find_images(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read as a folder of photos: {error.strerror}") from error
    if not found:
        raise DatasetError(nothing_found(folder, others))
    return tuple(found)


def held_out_scenes() -> Shapes:
    """The scenes that models are measured on, of a seed that is never trained on, at all sizes."""
    return Shapes(seed=2, length=500)


class Shapes(Scenes):
    """Scenes of shapes. The objects' longer sides go from 16 pixels (or 7 % of the shorter image side, if more) to 60 %
    of the shorter image side.
    """

    categories = CATEGORIES

    def __init__(
        self,
        seed: int,
        length: int,
        sides: tuple[int, int] = (200, 1024),
        *,
        things: float = 0.0,
        photos: Sequence[Path] = (),
    ) -> None:
        """Nothing is drawn yet.

        Args:
            seed: of all scenes.
            length: how many scenes there are.
            sides: shortest and longest image side, pixels; at least 64.
            things: how often there are things behind the shapes that are made of parts, as people and animals are; the
                model must not find shapes in those.
            photos: files, one of which lies behind PHOTO_PART of the scenes.

        Raises ValueError for a length or sides that cannot be.
        """
        super().__init__(seed, length, sides)
        self.things, self.photos = things, photos

    def __getitem__(self, index: int) -> Sample:
        """Scene `index`, with boxes and masks of what is visible of each object. Raises DatasetError for a photo that
        cannot be read.
        """
        pixels, layers, owner = self._draw(self._generator(index))
        numbers = [n for n, layer in enumerate(layers) if layer.label]
        masks = np.zeros((len(numbers), *owner.shape), np.uint8)
        boxes = np.zeros((len(numbers), 4), np.float32)
        for row, number in enumerate(numbers):
            masks[row] = owner == number
            boxes[row] = mask_to_box(masks[row])
        labels = np.array([layers[n].label for n in numbers], np.int64)
        visibility = np.array([layers[n].visible / layers[n].area for n in numbers])
        return Sample(index, pixels, boxes, labels, masks, visibility)

    def _draw(self, rng: Generator) -> tuple[np.ndarray, list[_Layer], np.ndarray]:
        """Pixels [H, W, 3] uint8, the layers from back to front, and which layer each pixel shows [H, W]."""
        height, width = self._size(rng)
        if on_photo := bool(self.photos) and rng.random() < PHOTO_PART:
            canvas = cut_out(rng, self._photo(rng), height, width)
        else:
            canvas = background(rng, height, width)
        if self.things and rng.random() < self.things:
            canvas = paint_things(rng, canvas)
        if rng.random() < 0.5:
            canvas = scribble(rng, canvas)
        layers: list[_Layer] = []
        owner = np.full((height, width), -1, np.int16)
        empty = rng.random() < (EMPTY_PHOTOS if on_photo else EMPTY)
        shapes = 0 if empty else int(rng.integers(1, 13))
        others = int(rng.integers(0, 10)) if rng.random() < 0.8 else 0
        order = rng.permutation([1] * shapes + [0] * others)
        for is_shape in order.tolist():
            # A crowded scene may have no room left: then it has one thing fewer.
            for _ in range(6):
                if _place(rng, canvas, layers, owner, is_shape=bool(is_shape)):
                    break
        return simulate_camera(rng, canvas), layers, owner

    def _photo(self, rng: Generator) -> np.ndarray:
        path = self.photos[int(rng.integers(len(self.photos)))]
        try:
            return decode(path.read_bytes())
        except (OSError, ImageError) as error:
            raise DatasetError(f"{path}: {error}") from error


def _place(
    rng: Generator, canvas: np.ndarray, layers: list[_Layer], owner: np.ndarray, *, is_shape: bool
) -> bool:
    """Draw one more thing on top, unless it would hide another too far or itself lie outside; say if it was."""
    height, width = owner.shape
    short = min(height, width)
    least = max(16.0, 0.07 * short)
    # Log-uniform, leaning to the larger ones.
    size = least * (0.6 * short / least) ** (rng.random() ** 0.7)
    label, inside, line = _draw_shape(rng, size) if is_shape else _draw_distractor(rng, size)
    # Soft-edged and rough, as no shape is.
    natural = not is_shape and rng.random() < 0.5
    if natural:
        margin = round(0.15 * max(inside.shape))
        inside = blur(np.pad(inside, margin), rng.uniform(0.01, 0.07) * max(inside.shape))
        line = None
    h, w = inside.shape
    # Up to a quarter may lie beyond the border.
    left = round(rng.uniform(-0.25 * w, width - 0.75 * w)) if rng.random() < 0.25 else _within(rng, width, w)
    top = round(rng.uniform(-0.25 * h, height - 0.75 * h)) if rng.random() < 0.25 else _within(rng, height, h)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
    if x1 <= x0 or y1 <= y0:
        return False
    window, own = (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    solid = inside > 0.5
    seen = int(solid[own].sum())
    if is_shape and (seen < LEAST_PIXELS or seen < LEAST_VISIBLE * solid.sum()):
        return False
    hidden = np.bincount(owner[window][solid[own]] + 1, minlength=len(layers) + 1)[1:]
    for layer, lost in zip(layers, hidden.tolist(), strict=True):
        left_over = layer.visible - lost
        if layer.label and lost and left_over < max(LEAST_PIXELS, LEAST_VISIBLE * layer.area):
            return False
    _paint(rng, canvas, (window, own), (inside, line), natural_fill if natural else fill)
    for layer, lost in zip(layers, hidden.tolist(), strict=True):
        layer.visible -= lost
    owner[window][solid[own]] = len(layers)
    layers.append(_Layer(label, int(solid.sum()), seen))
    return True


def _within(rng: Generator, whole: int, part: int) -> int:
    return int(rng.integers(0, max(1, whole - part)))


def _draw_shape(rng: Generator, size: float) -> tuple[int, np.ndarray, np.ndarray | None]:
    label = int(rng.integers(1, len(SHAPES) + 1))
    stroke = size * rng.uniform(0.02, 0.07) if rng.random() < 0.35 else 0.0
    fitted = distort(outline(SHAPES[label - 1], rng), rng, stretch=0.12).fit(size)
    return label, *coverage(fitted, stroke)


def _draw_distractor(rng: Generator, size: float) -> tuple[int, np.ndarray, np.ndarray | None]:
    kind = DISTRACTORS[int(rng.integers(len(DISTRACTORS)))]
    if kind == "letter":
        return 0, letter_coverage(rng, size), None
    stroke = size * rng.uniform(0.02, 0.07) if rng.random() < 0.35 else 0.0
    return 0, *coverage(distort(distractor(kind, rng), rng, stretch=0.15).fit(size), stroke)


def _paint(
    rng: Generator,
    canvas: np.ndarray,
    place: tuple[Window, Window],
    drawn: tuple[np.ndarray, np.ndarray | None],
    filling: Callable[[Generator, int, int, np.ndarray], np.ndarray],
) -> None:
    """Blend fill, contour and shadow of one thing into the canvas, in a colour that stands out from what is there."""
    # On the canvas, and of what is drawn.
    window, own = place
    inside, line = drawn
    under = canvas[window].reshape(-1, 3).mean(0)
    base = colour(rng)
    for _ in range(20):
        if float(np.abs(base - under).sum()) > 110:
            break
        base = colour(rng)
    # A shadow falls beside it, and is not part of the mask.
    if rng.random() < 0.3:
        radius = max(1.0, 0.05 * max(inside.shape))
        shift = tuple(int(v) for v in rng.integers(-round(2 * radius), round(2 * radius) + 1, 2))
        shade = np.roll(blur(np.pad(inside, 1), radius)[1:-1, 1:-1], shift, (0, 1))
        canvas[window] *= 1 - np.float32(rng.uniform(0.2, 0.6)) * shade[own][..., None]
    painted = filling(rng, inside.shape[0], inside.shape[1], base)
    if line is not None:
        ink = np.clip(base + rng.choice([-90.0, 90.0]) + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
        painted = painted + (ink - painted) * line[..., None]
    canvas[window] += (painted[own] - canvas[window]) * inside[own][..., None]
