"""What moves objects: pixels, masks and boxes stay together, and what cannot be seen is no object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import Sample
from model.data.appearance import Appearance
from model.data.augment import FILL, Augmentation, copy_paste, jitter_scale
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


def coordinates(height: int, width: int, seed: int) -> Sample:
    """An image whose pixels say where they are, in quarters of a pixel: 4 x, 4 y, 255; with three ragged objects."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[..., 0], pixels[..., 1] = 4 * np.arange(width), 4 * np.arange(height)[:, None]
    masks = np.zeros((3, height, width), np.uint8)
    for mask in masks:
        y, x = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 8))
        mask[y : y + 20, x : x + 14] = 1
        mask[y + 2 : y + 4, x + 1 : x + 3] = 0
    boxes = np.array([around(mask) for mask in masks], np.float32)
    return Sample(1, pixels, boxes, np.array([4, 5, 6]), masks)


def never() -> Sample:
    raise AssertionError("another sample was not asked for")


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(24, 63), st.integers(24, 63)),
    flip=st.sampled_from([0.0, 1.0]),
    flip_vertical=st.sampled_from([0.0, 1.0]),
    rotate=st.sampled_from([0.0, 1.0]),
)
def test_flips_and_rotations_move_every_pixel_of_image_and_masks_alike(
    seed: int, size: tuple[int, int], flip: float, flip_vertical: float, rotate: float
) -> None:
    before = coordinates(*size, seed)
    made = Augmentation(flip, flip_vertical, rotate)(before, np.random.default_rng(seed), never)
    xs, ys = made.pixels[..., 0] // 4, made.pixels[..., 1] // 4
    assert sorted(zip(xs.flat, ys.flat, strict=True)) == [
        (x, y) for x in range(size[1]) for y in range(size[0])
    ]
    assert np.array_equal(np.asarray(made.masks), np.asarray(before.masks)[:, ys, xs])
    assert made.labels.tolist() == [4, 5, 6]
    assert [around(mask) for mask in np.asarray(made.masks)] == made.boxes.tolist()


def test_flips_and_rotations_are_what_they_are_called() -> None:
    before = coordinates(30, 40, 0)
    rng = np.random.default_rng(0)
    made = Augmentation(0.0, flip_vertical=1.0)(before, rng, never)
    assert np.array_equal(made.pixels, before.pixels[::-1])
    made = Augmentation(1.0)(before, rng, never)
    assert np.array_equal(made.pixels, before.pixels[:, ::-1])
    turned = {
        tuple(
            Augmentation(0.0, rotate=1.0)(before, np.random.default_rng(seed), never)
            .pixels[0, 0, :2]
            .tolist()
        )
        for seed in range(20)
    }
    # The corner at the top left comes from the top right, the bottom right or the bottom left.
    assert turned == {(4 * 39, 0), (4 * 39, 4 * 29), (0, 4 * 29)}


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(24, 63), st.integers(24, 63)),
    scale=st.floats(0.5, 3.0),
)
def test_jitter_takes_the_pixels_of_masks_from_where_it_takes_those_of_the_image(
    seed: int, size: tuple[int, int], scale: float
) -> None:
    before = coordinates(*size, seed)
    changes = Augmentation(0.5, 0.5, 0.5, jitter=(scale, scale), side=80)
    made = changes(before, np.random.default_rng(seed), never)
    inside = made.pixels[..., 2] == 255
    # The centre of each pixel in the source image, in pixels, to an eighth: where it lies at an edge between two
    # pixels, either of them is right. Smaller images are averages, which at the border are off.
    x, y = (made.pixels[..., axis] / 4 + 0.5 for axis in (0, 1))
    certain = inside.copy()
    for position, side in ((x, size[1]), (y, size[0])):
        certain &= np.abs(position - np.rint(position)) > 0.15
        certain &= (position > 2) & (position < side - 2)
    source = np.asarray(before.masks)[
        :, y.astype(int).clip(0, size[0] - 1), x.astype(int).clip(0, size[1] - 1)
    ]
    assert not np.asarray(made.masks)[:, ~inside].any()
    for label, mask, box in zip(made.labels, np.asarray(made.masks), made.boxes, strict=True):
        assert np.array_equal(mask[certain], source[label - 4][certain])
        assert around(mask) == box.tolist()


def test_changes_of_pixels_leave_masks_and_the_canvas_alone() -> None:
    before = painted((20, 24, 16))
    negative = Augmentation(0.0, appearance=Appearance(invert=1.0), jitter=(0.5, 0.5), side=100)
    made, plain = (
        changes(before, np.random.default_rng(3), never)
        for changes in (negative, Augmentation(0.0, jitter=(0.5, 0.5), side=100))
    )
    assert made.masks.size == (100, 100)
    outside = (made.pixels == FILL).all(2)
    assert 100 * 100 - outside.sum() == 50 * 50
    assert set(made.pixels[~outside].flat) >= {255, 55}
    assert made.boxes.shape == plain.boxes.shape == (1, 4)


def test_whatever_is_turned_off_draws_nothing() -> None:
    rngs = [np.random.default_rng(7), np.random.default_rng(7)]
    Augmentation()(painted((20, 24, 16)), rngs[0], never)
    rngs[1].random()
    assert rngs[0].random() == rngs[1].random()


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
