"""Objects that tiles have cut come back once each, whatever the order of the tiles."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.inference.tiling import Tiling
from model.masks import merge as merging
from model.masks import rle
from model.masks.merge import Layout, TileDetections, concatenate, leave_to_others
from model.masks.runs import ColumnRuns, empty, from_turns, rectangles
from model.network.architecture import V1
from model.zoo.model_file import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Bitmap = NDArray[np.bool_]


def runs_of(bitmaps: Iterable[Bitmap]) -> ColumnRuns:
    """Bitmaps of one size as runs, by another way than the code under test."""
    turns, count = [], 0
    for number, bitmap in enumerate(bitmaps):
        column, row = np.nonzero(np.diff(np.pad(bitmap, ((1, 1), (0, 0))).T.astype(np.int8), axis=1))
        turns.append((np.full(len(column), number), column, row))
        count += 1
    mask, column, row = (np.concatenate(part) for part in zip(*turns, strict=True))
    return from_turns(mask, column, row, count)


def scene(seed: int, side: int, count: int) -> NDArray[np.int64]:
    """Shapes that do not touch, as a map [side, side] of their numbers from 1: ellipses, stars and rings of 6 to 250
    pixels, some of them cut off by the image's border.
    """
    random = np.random.default_rng(seed)
    numbers = np.zeros((side, side), dtype=np.int64)
    placed = 0
    while placed < count:
        reach = round(float(np.exp(random.uniform(np.log(6), np.log(250)))))
        picture = Image.new("1", (reach, reach))
        draw = ImageDraw.Draw(picture)
        if random.random() < 0.5:
            draw.ellipse((0, reach * random.uniform(0, 0.4), reach, reach), fill=1)
        else:
            angles = np.sort(random.uniform(0, 2 * np.pi, 8))
            radii = reach / 2 * random.uniform(0.3, 1, 8)
            points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) + reach / 2
            draw.polygon([tuple(point) for point in points.tolist()], fill=1)
        if random.random() < 0.3:
            middle, radius = reach / 2, reach / 8
            draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=0)
        left, top = random.integers(-reach // 3, side - reach // 2, 2).tolist()
        place = slice(max(top, 0), top + reach), slice(max(left, 0), left + reach)
        bitmap = np.asarray(picture)[max(-top, 0) :, max(-left, 0) :]
        bitmap = bitmap[: side - place[0].start, : side - place[1].start]
        around = numbers[max(top - 1, 0) : top + reach + 1, max(left - 1, 0) : left + reach + 1]
        if bitmap.sum() < 20 or around.any():
            continue
        placed += 1
        numbers[place][bitmap] = placed
    return numbers


def cut(numbers: NDArray[np.int64], layout: Layout) -> list[TileDetections]:
    """What a perfect network finds in each tile: each object's pixels there, with a score of their own."""
    random = np.random.default_rng(0)
    parts = []
    for tile, (left, top, right, bottom) in enumerate(layout.tiles.tolist()):
        crop = numbers[top:bottom, left:right]
        seen = np.unique(crop[crop > 0])
        masks = runs_of(crop == number for number in seen).move(left, top) if len(seen) else empty()
        scores = random.uniform(0.5, 1, len(seen)).astype(np.float32)
        boxes = masks.boxes().astype(np.float32)
        tiles, none = np.full(len(seen), tile), np.zeros((len(seen), 0, 4), np.float32)
        parts.append(TileDetections(boxes, scores, 1 + seen % 2, tiles, masks, none))
    return parts


def layout_of(side: int, tile: int, overlap: float, *, whole: bool = False) -> Layout:
    layout = Tiling(tile, overlap, whole).cut(side, side, describe("perfect", V1, ()))
    assert layout is not None
    return layout


def leave(found: TileDetections, layout: Layout) -> TileDetections:
    """What each tile does not leave to another one."""
    return concatenate(
        [
            leave_to_others(found.take(np.flatnonzero(found.tiles == number)), number, layout)
            for number in range(len(layout.tiles))
        ]
    )


def merge(found: TileDetections, layout: Layout) -> TileDetections:
    return merging.merge(leave(found, layout), layout)


def same(one: TileDetections, other: TileDetections) -> bool:
    return all(
        np.array_equal(first, second)
        for first, second in (
            (one.boxes, other.boxes),
            (one.scores, other.scores),
            (one.labels, other.labels),
            (one.masks.columns, other.masks.columns),
            (one.masks.tops, other.masks.tops),
            (one.masks.bottoms, other.masks.bottoms),
            (one.masks.bounds, other.masks.bounds),
        )
    )


@pytest.mark.parametrize(
    ("tile", "overlap", "whole"), [(100, 0.2, False), (100, 0.2, True), (128, 0.5, False), (230, 0.1, False)]
)
def test_hundreds_of_objects_come_back_once_each(tile: int, overlap: float, *, whole: bool) -> None:
    numbers = scene(tile, 1000, 130)
    layout = layout_of(1000, tile, overlap, whole=whole)
    parts = cut(numbers, layout)
    assert sum(map(len, parts)) > 1.5 * 130
    merged = merge(concatenate(parts), layout)
    assert len(merged) == 130
    assert (np.diff(merged.scores) <= 0).all()
    areas, found = np.bincount(numbers.reshape(-1)), set()
    for label, box, mask in zip(merged.labels, merged.boxes, merged.masks.rles((1000, 1000)), strict=True):
        under = numbers.T.reshape(-1)[rle.foreground(mask)]
        number = int(np.bincount(under).argmax())
        shared = int((under == number).sum())
        assert shared / (mask.area + areas[number] - shared) >= 0.95
        assert label == 1 + number % 2
        ys, xs = np.nonzero(numbers == number)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        found.add(number)
    assert len(found) == 130


def test_the_order_of_tiles_and_of_their_detections_changes_nothing() -> None:
    layout = layout_of(600, 128, 0.25, whole=True)
    found = leave(concatenate(cut(scene(7, 600, 60), layout)), layout)
    random = np.random.default_rng(0)
    # Different scores, and one for all.
    for scores in found.scores, np.full(len(found), 0.75, dtype=np.float32):
        given = replace(found, scores=scores)
        expected = merging.merge(given, layout)
        for _ in range(3):
            assert same(merging.merge(given.take(random.permutation(len(found))), layout), expected)


# Two tiles of 100 × 100 pixels that share the columns 60 to 100, and the whole image.
PAIR = Layout((100, 160), np.array([[0, 0, 100, 100], [60, 0, 160, 100]]), (100, 40))
WITH_WHOLE = Layout((100, 160), np.array([*PAIR.tiles.tolist(), [0, 0, 160, 100]]), (100, 40), has_whole=True)
Found = tuple[int, float, int, tuple[int, int, int, int]]


def detections(*found: Found) -> TileDetections:
    """Rectangles: the number of the tile, score, category, and xyxy in the image."""
    tiles, scores, labels, boxes = (np.array(column) for column in zip(*found, strict=True))
    masks, none = rectangles(boxes), np.zeros((len(found), 0, 4), np.float32)
    return TileDetections(boxes.astype(np.float32), scores.astype(np.float32), labels, tiles, masks, none)


def merged(layout: Layout, *found: Found) -> list[tuple[float, list[int]]]:
    """Scores and boxes of the objects."""
    objects = merge(detections(*found), layout)
    assert np.array_equal(objects.masks.boxes(), objects.boxes)
    boxes = objects.boxes.astype(int).tolist()
    return list(zip(objects.scores.astype(float).round(2).tolist(), boxes, strict=True))


def test_of_complete_detections_the_highest_score_stands() -> None:
    found = (0, 0.8, 1, (70, 20, 90, 40)), (1, 0.9, 1, (72, 20, 92, 40))
    assert merged(PAIR, *found) == [(0.9, [72, 20, 92, 40])]


def test_a_cut_detection_gives_way_to_a_complete_one_of_lower_score() -> None:
    found = (0, 0.6, 1, (50, 20, 90, 40)), (1, 0.9, 1, (60, 20, 88, 41))
    assert merged(PAIR, *found) == [(0.6, [50, 20, 90, 40])]


def test_parts_are_united_with_the_higher_score() -> None:
    found = (0, 0.6, 1, (20, 20, 100, 40)), (1, 0.7, 1, (60, 20, 140, 40))
    assert merged(PAIR, *found) == [(0.7, [20, 20, 140, 40])]


def test_a_complete_detection_of_hardly_any_score_gives_way() -> None:
    parts = (0, 0.9, 1, (20, 20, 100, 60)), (1, 0.8, 1, (60, 20, 140, 60))
    assert merged(PAIR, *parts, (0, 0.1, 1, (64, 20, 92, 60))) == [(0.9, [20, 20, 140, 60])]


def test_what_another_tile_sees_more_of_is_left_to_it() -> None:
    # It sees that there is nothing.
    assert merged(PAIR, (1, 0.9, 1, (60, 20, 90, 40))) == []
    # Neither tile has all of it.
    assert len(merged(PAIR, (1, 0.9, 1, (60, 20, 120, 40)))) == 1


def test_of_two_tiles_that_have_an_object_inside_the_one_with_more_around_it_decides() -> None:
    # 34 pixels to the right border of the left tile, 6 to the left border of the right one.
    assert merged(PAIR, (0, 0.6, 1, (66, 20, 76, 40)), (1, 0.9, 1, (66, 20, 76, 41))) == [
        (0.6, [66, 20, 76, 40])
    ]
    assert merged(PAIR, (1, 0.9, 1, (66, 20, 76, 40))) == []
    # As much in both: each may have seen it elsewhere by a few pixels, and neither is left out.
    assert len(merged(PAIR, (0, 0.9, 1, (70, 20, 90, 40)))) == 1
    assert len(merged(PAIR, (1, 0.9, 1, (70, 20, 90, 40)))) == 1


@pytest.mark.parametrize("width", [30, 34, 37, 40])
@pytest.mark.parametrize("shift", [-3, -1, 0, 2])
def test_an_object_as_wide_as_the_overlap_comes_back_once(width: int, shift: int) -> None:
    # Both tiles find it within two pixels of the border, or one does, at places that differ by the shift.
    for left in range(55, 106 - width):
        seen = left + shift
        found = merged(
            PAIR,
            (0, 0.95, 1, (seen, 20, min(seen + width, 100), 60)),
            (1, 0.95, 1, (max(left, 60), 20, left + width, 60)),
        )
        assert [score for score, _ in found] == [0.95], left


def test_a_cut_object_whose_box_ends_before_the_border_is_not_complete() -> None:
    # The left tile ends at 100, the object at 140.
    found = (0, 0.9, 1, (20, 20, 94, 40)), (1, 0.7, 1, (60, 20, 140, 40))
    assert merged(PAIR, *found) == [(0.9, [20, 20, 140, 40])]
    # The right tile has all of it.
    found = (0, 0.9, 1, (70, 20, 94, 40)), (1, 0.7, 1, (70, 20, 140, 40))
    assert merged(PAIR, *found) == [(0.7, [70, 20, 140, 40])]


def test_each_keypoint_is_that_of_the_part_that_is_surest_of_it() -> None:
    found = detections((0, 0.6, 1, (20, 20, 100, 40)), (1, 0.7, 1, (60, 20, 140, 40)))
    keypoints = np.array([[[30, 30, 1, 9], [99, 30, 1, 2]], [[61, 30, 1, 3], [130, 30, 1, 8]]], np.float32)
    (united,) = merge(replace(found, keypoints=keypoints), PAIR).keypoints.tolist()
    assert united == [[30, 30, 1, 9], [130, 30, 1, 8]]


def test_a_fragment_lies_in_the_object_that_it_is_of() -> None:
    # Hardly seen by the right tile, and too small there for an IoU of one half.
    found = (0, 0.6, 1, (20, 20, 68, 60)), (1, 0.7, 1, (60, 22, 64, 40))
    assert merged(PAIR, *found) == [(0.6, [20, 20, 68, 60])]


def test_neighbours_and_categories_are_not_one_object() -> None:
    found = (
        (0, 0.9, 1, (20, 20, 100, 40)),
        (1, 0.8, 1, (60, 38, 140, 60)),
        (1, 0.7, 2, (60, 20, 140, 40)),
    )
    assert len(merged(PAIR, *found)) == 3


def test_an_object_on_a_larger_one_of_its_category_stays() -> None:
    large = (0, 0.9, 1, (20, 10, 100, 90)), (1, 0.8, 1, (60, 10, 140, 90))
    small = (0, 0.7, 1, (65, 30, 95, 50)), (1, 0.6, 1, (65, 30, 95, 50))
    assert merged(PAIR, *large, *small) == [(0.9, [20, 10, 140, 90]), (0.7, [65, 30, 95, 50])]


def test_the_border_of_the_image_cuts_nothing() -> None:
    found = (0, 0.7, 1, (0, 0, 80, 30)), (1, 0.9, 1, (60, 0, 80, 30))
    assert merged(PAIR, *found) == [(0.7, [0, 0, 80, 30])]


def test_the_whole_image_stands_where_the_tiles_have_less() -> None:
    whole = (2, 0.5, 1, (10, 10, 150, 90))
    # Only one half was found in a tile.
    assert merged(WITH_WHOLE, whole, (0, 0.9, 1, (10, 10, 100, 90))) == [(0.9, [10, 10, 150, 90])]
    # It is no larger than a tile, and the tiles have nearly all of it.
    whole = (2, 0.5, 1, (31, 10, 129, 90))
    found = (0, 0.6, 1, (31, 12, 100, 90)), (1, 0.7, 1, (60, 12, 128, 90))
    assert merged(WITH_WHOLE, whole, *found) == [(0.7, [31, 12, 128, 90])]
    # A tile has seen it completely.
    whole = (2, 0.9, 1, (31, 10, 90, 90))
    assert merged(WITH_WHOLE, whole, (0, 0.6, 1, (30, 12, 92, 90))) == [(0.6, [30, 12, 92, 90])]
    # It is several objects.
    found = (0, 0.6, 1, (30, 12, 60, 90)), (0, 0.7, 1, (62, 12, 92, 90))
    assert len(merged(WITH_WHOLE, whole, *found)) == 2
    # A tile would have seen it completely, and saw nothing.
    assert merged(WITH_WHOLE, (2, 0.9, 1, (70, 10, 90, 90))) == []


def test_no_bitmap_of_a_huge_image_is_made() -> None:
    layout = Tiling(1000, 0.2, whole=True).cut(30_000, 30_000, describe("perfect", V1, ()))
    assert layout is not None
    random = np.random.default_rng(0)
    corners = random.integers(0, 29_900, (1000, 2))
    boxes = np.concatenate([corners, corners + random.integers(5, 100, (1000, 2))], axis=1)
    tiles = np.array(
        [
            np.flatnonzero((layout.tiles[:, :2] <= corner).all(1) & (corner < layout.tiles[:, 2:]).all(1))[0]
            for corner in corners
        ]
    )
    clipped = np.concatenate([boxes[:, :2], np.minimum(boxes[:, 2:], layout.tiles[tiles, 2:])], axis=1)
    found = TileDetections(
        clipped.astype(np.float32),
        np.ones(1000, np.float32),
        np.ones(1000, np.int64),
        tiles,
        rectangles(clipped),
        np.zeros((1000, 0, 4), np.float32),
    )
    tracemalloc.start()
    masks = merge(found, layout).masks.rles(layout.size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(masks) > 700
    assert peak < 64 << 20
