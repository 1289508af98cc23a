"""Runs of pixel columns are the masks that `paste` makes, whatever is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.masks import rle, runs
from model.masks.paste import column_runs, crops, paste
from model.masks.runs import ColumnRuns
from tests.model.masks.test_paste import boxes_around, maps

if TYPE_CHECKING:
    from torch import Tensor

SIZE = (90, 120)


def masks(count: int = 40) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(3)
    return maps("blobs", count, 28, random), boxes_around(SIZE, count, random)


@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_runs_are_the_pasted_masks(rule: str) -> None:
    probabilities, boxes = masks()
    found = column_runs(probabilities, boxes, SIZE, rule=rule)
    pasted = paste(probabilities, boxes, SIZE, rule=rule)
    assert found.rles(SIZE) == pasted
    assert found.areas().tolist() == [mask.area for mask in pasted]
    for (left, top, bitmap), mask in zip(found.crops(), pasted, strict=True):
        whole = np.zeros(SIZE, dtype=np.bool_)
        whole[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
        assert np.array_equal(whole, rle.decode(mask))
        assert not bitmap.size or (bitmap.any(axis=0)[[0, -1]].all() and bitmap.any(axis=1)[[0, -1]].all())


def test_a_tiles_runs_move_to_their_place_in_the_image() -> None:
    probabilities, boxes = masks(5)
    moved = column_runs(probabilities, boxes, SIZE).move(30, 7).rles((200, 300))
    for mask, expected in zip(moved, paste(probabilities, boxes, SIZE), strict=True):
        whole = np.zeros((200, 300), dtype=np.uint8)
        whole[7 : 7 + SIZE[0], 30 : 30 + SIZE[1]] = rle.decode(expected)
        assert mask == rle.encode(whole)


def test_overlaps_and_unions_are_those_of_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS_AT_ONCE", 500)
    probabilities, boxes = masks()
    found = column_runs(probabilities, boxes, SIZE)
    bitmaps = [rle.decode(mask).astype(np.bool_) for mask in found.rles(SIZE)]
    random = np.random.default_rng(0)
    first, second = random.integers(0, 40, (2, 300))
    corners = np.sort(random.integers(0, 121, (300, 2, 2)), axis=1)
    windows = np.minimum(corners.reshape(300, 4), [120, 90, 120, 90])
    for pair, (one, other, (left, top, right, bottom)) in enumerate(
        zip(first, second, windows.tolist(), strict=True)
    ):
        a, b = (bitmaps[mask][top:bottom, left:right] for mask in (one, other))
        expected = [a.sum(), b.sum(), (a & b).sum()]
        assert runs.overlaps(found, first, second, windows)[pair].tolist() == expected
        if pair > 40:
            break
    groups = np.array([0, 3, 3, 10, 40])
    united = runs.unite(found, np.arange(40), groups)
    for mask, begin, end in zip(united.rles(SIZE), groups[:-1], groups[1:], strict=True):
        whole = np.logical_or.reduce(bitmaps[begin:end]) if begin < end else np.zeros(SIZE)
        assert mask == rle.encode(whole)


def test_the_corners_of_the_largest_image_fit() -> None:
    side = 65_535
    corner = runs.rectangles(np.array([[side - 2, side - 3, side, side], [0, 0, 1, side]]))
    assert corner.areas().tolist() == [6, side]
    assert runs.unite(corner, np.array([0, 1]), np.array([0, 2])).areas().tolist() == [6 + side]
    windows = np.array([[0, 0, side, side]])
    assert runs.overlaps(corner, np.array([0]), np.array([0]), windows).tolist() == [[6, 6, 6]]


def test_polygons_fill_to_their_mask() -> None:
    probabilities, boxes = masks()
    found = column_runs(probabilities, boxes, SIZE)
    for polygons, crop in zip(found.outlines(), crops(probabilities, boxes, SIZE), strict=True):
        assert polygons.area == crop.bitmap.sum()
        assert bool(polygons.parts) == bool(polygons.area)


def test_no_mask_at_all_has_no_runs() -> None:
    none = runs.concatenate([])
    assert (len(none), none.rles(SIZE), none.outlines(), list(none.crops())) == (0, [], [], [])
    assert isinstance(runs.unite(none, np.zeros(0, np.int64), np.zeros(1, np.int64)), ColumnRuns)
