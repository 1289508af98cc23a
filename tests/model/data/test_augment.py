"""Large-scale jitter and copy-paste: pixels, masks and boxes stay together, and what cannot be seen is no object."""

from __future__ import annotations

import numpy as np
import pytest

from model.data import Sample
from model.data.augment import FILL, copy_paste, jitter_scale
from model.data.shapes import Shapes


def around(mask: np.ndarray) -> list[float]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]


def painted(*squares: tuple[int, int, int], side: int = 64, colour: int = 200) -> Sample:
    """Squares (left, top, side) on black, each an object of its own category."""
    pixels = np.zeros((side, side, 3), np.uint8)
    masks = np.zeros((len(squares), side, side), np.uint8)
    for mask, (x, y, size) in zip(masks, squares, strict=True):
        mask[y : y + size, x : x + size] = 1
        pixels[mask.astype(bool)] = colour
    boxes = np.array([[x, y, x + s, y + s] for x, y, s in squares], np.float32).reshape(-1, 4)
    return Sample(1, pixels, boxes, np.arange(1, len(squares) + 1), masks)


@pytest.mark.parametrize("scales", [(0.3, 0.3), (1.0, 1.0), (2.0, 2.0), (0.1, 2.0)])
def test_jitter_keeps_pixels_masks_and_boxes_together(scales: tuple[float, float]) -> None:
    square = painted((20, 24, 16))
    for seed in range(8):
        made = jitter_scale(square, np.random.default_rng(seed), scales, 96)
        assert made.pixels.shape == (96, 96, 3)
        assert made.masks.shape[1:] == (96, 96)
        for mask, box in zip(made.masks, made.boxes, strict=True):
            assert around(mask) == box.tolist()
            inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            assert (
                made.pixels[1:-1, 1:-1][inner.astype(bool)] > 100
            ).all()  # the square is where its mask is


def test_small_image_lies_on_a_canvas_of_the_mean_colour() -> None:
    made = jitter_scale(painted((0, 0, 64)), np.random.default_rng(0), (0.5, 0.5), 100)
    inside = made.masks[0].astype(bool)
    assert inside.sum() == 50 * 50
    assert (made.pixels[~inside] == FILL).all()


def test_objects_that_are_cropped_away_are_dropped() -> None:
    counts = {
        len(jitter_scale(painted((28, 28, 8)), np.random.default_rng(seed), (4.0, 4.0), 64).labels)
        for seed in range(12)
    }
    assert counts == {0, 1}


def test_pasted_objects_hide_what_is_below_them() -> None:
    below, above = painted((10, 10, 20)), painted((20, 10, 20), colour=90)
    rng = np.random.default_rng(3)
    made = copy_paste(below, above, rng)
    while len(made.labels) == 1:  # it pastes a random part of the objects, here all or none
        made = copy_paste(below, above, rng)
    assert np.asarray(made.masks).sum((1, 2)).tolist() == [200, 400]
    assert made.boxes.tolist() == [[10, 10, 20, 30], [20, 10, 40, 30]]
    assert not (made.masks[0] & made.masks[1]).any()
    assert (made.pixels[made.masks[1].astype(bool)] == 90).all()


def test_object_that_is_covered_all_over_is_gone() -> None:
    rng = np.random.default_rng(3)
    below, above = painted((10, 10, 10)), painted((5, 5, 30), colour=90)
    counts = {tuple(np.asarray(copy_paste(below, above, rng).masks).sum((1, 2)).tolist()) for _ in range(20)}
    assert counts == {(100,), (900,)}


def test_scenes_survive_all_of_it() -> None:
    scenes = Shapes(seed=2, length=4, sides=(64, 128))
    rng = np.random.default_rng(0)
    for index in range(4):
        first, second = (jitter_scale(scenes[n], rng, (0.5, 1.5), 96) for n in (index, (index + 1) % 4))
        made = copy_paste(first, second, rng)
        assert len(made.labels) == len(made.boxes) == len(made.masks)
        for mask, box in zip(made.masks, made.boxes, strict=True):
            assert around(mask) == box.tolist()
