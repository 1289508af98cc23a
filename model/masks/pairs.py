"""Pairs of detections in different tiles, and whether their masks agree where the tiles overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.masks.runs import overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from model.masks.runs import ColumnRuns

    Indices = NDArray[np.int64]
    Flags = NDArray[np.bool_]

# Of IoU, and of the share of a cut part that lies in the other mask. COCO counts an object as found from there on.
AGREEMENT = 0.5
# A detection touches the border of its tile if it is nearer than this: boxes are inexact by a few pixels …
BORDER_PIXELS = 2
# … and by a share of the side where a tile is resized.
BORDER_SHARE = 1 / 128
# Share of an object's size by which its boxes in two tiles may differ.
INEXACT = 0.1
# Candidates that are looked at together: some ten arrays of them, 80 MB at most.
CANDIDATES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of detections of one category in different tiles that are one object."""

    first: Indices  # [P] the smaller number of each pair
    second: Indices  # [P]
    outside: NDArray[
        np.float64
    ]  # [P, 2] share of the first that is outside of the second's tile, and vice versa


def touched_borders(
    boxes: NDArray[np.float32], masks: ColumnRuns, tiles: Indices, size: tuple[int, int]
) -> Flags:
    """[N, 4] whether detections touch the left, top, right and bottom border of their tile; not where the image ends.

    Args:
        boxes: [N, 4] xyxy, pixels of the image.
        masks: [N], none of them empty.
        tiles: [N, 4] xyxy of each one's tile.
        size: (height, width) of the image.
    """
    touched: Flags = _depths(_outer(boxes, masks), tiles, size) <= _near(tiles)
    return touched


def _near(tiles: Indices) -> NDArray[np.float64]:
    """[N, 4] depths into tiles, pixels, up to which a detection touches the border."""
    sides = tiles[:, 2:] - tiles[:, :2]
    return np.tile(np.maximum(sides * BORDER_SHARE, BORDER_PIXELS), 2)


def _depths(outer: NDArray[np.float64], tiles: Indices, size: tuple[int, int]) -> NDArray[np.float64]:
    """[N, 4] how far boxes are from each border of their tile, pixels: infinite where the image ends, negative outside.

    Args:
        outer: [N, 4] xyxy around what is in the tile.
        tiles: [N, 4] xyxy, or [1, 4] for all.
        size: (height, width) of the image.
    """
    is_inside = np.stack(
        [tiles[:, 0] > 0, tiles[:, 1] > 0, tiles[:, 2] < size[1], tiles[:, 3] < size[0]], axis=1
    )
    return np.where(is_inside, (outer - tiles) * np.array([1, 1, -1, -1]), np.inf)


def _outer(boxes: NDArray[np.float32], masks: ColumnRuns) -> NDArray[np.float64]:
    """[N, 4] xyxy around boxes and masks."""
    exact = masks.boxes()
    return np.concatenate(
        [np.minimum(boxes[:, :2], exact[:, :2]), np.maximum(boxes[:, 2:], exact[:, 2:])], axis=1
    )


def is_seen_better(
    boxes: NDArray[np.float32], masks: ColumnRuns, tile: Indices, others: Indices, size: tuple[int, int]
) -> Flags:
    """[N] whether another tile has all of a detection inside its borders, and clearly more around it than its own.

    Args:
        boxes: [N, 4] xyxy, pixels of the image.
        masks: [N], none of them empty.
        tile: [4] xyxy of the tile that they were found in.
        others: [T, 4] xyxy of the tiles that overlap with it.
        size: (height, width) of the image.
    """
    outer = _outer(boxes, masks)
    # Both tiles see it at slightly other places, also where its own has cut it: else each of two tiles might leave it
    # to the other.
    inexact = BORDER_PIXELS + INEXACT * (outer[:, 2:] - outer[:, :2]).max(axis=1, initial=0)
    enough = _depths(outer, tile[None], size).min(axis=1) + inexact
    seen = np.zeros(len(boxes), dtype=np.bool_)
    for other in others[:, None]:
        depths = _depths(outer, other, size)
        seen |= (depths > _near(other)).all(axis=1) & (depths.min(axis=1) > enough)
    return seen


def find_pairs(masks: ColumnRuns, labels: Indices, tiles: Indices, layout: Indices, cut: Flags) -> Pairs:
    """All pairs that are one object.

    Args:
        masks: [N].
        labels: [N] categories.
        tiles: [N] number of each one's tile.
        layout: [T, 4] xyxy of the tiles.
        cut: [N, 4] as `touched_borders` has it.
    """
    boxes = masks.boxes()
    found = [(np.empty(0, np.int64),) * 2 + (np.empty((0, 3), np.int64),)]
    for one, other in candidates(boxes, labels, tiles):
        windows = intersect(layout[tiles[one]], layout[tiles[other]])
        seen = is_filled(intersect(intersect(boxes[one], boxes[other]), windows))
        shared = overlaps(masks, one[seen], other[seen], windows[seen])
        real = shared[:, 2] > 0
        found.append((one[seen][real], other[seen][real], shared[real]))
    first, second, areas = (np.concatenate(column) for column in zip(*found, strict=True))
    whole = masks.areas()
    outside = 1 - areas[:, :2] / np.stack([whole[first], whole[second]], axis=1)
    agree = _agree(Pairs(first, second, outside), areas, tiles, layout, cut)
    return Pairs(first[agree], second[agree], outside[agree])


def _agree(pairs: Pairs, areas: Indices, tiles: Indices, layout: Indices, cut: Flags) -> Flags:
    """[P] whether pairs are one object.

    Args:
        pairs: that share pixels.
        areas: [P, 3] as `overlaps` has them.
        tiles: [N] number of each detection's tile.
        layout: [T, 4] xyxy of the tiles.
        cut: [N, 4] as `touched_borders` has it.
    """
    first, second = pairs.first, pairs.second
    own, other, both = areas.T
    same = both >= AGREEMENT * (own + other - both)
    # Which detection has its counterpart in which tile. One that has none may be a fragment of an object there.
    count = len(layout)
    matched = np.concatenate(
        [first[same] * count + tiles[second[same]], second[same] * count + tiles[first[same]]]
    )
    agree = same.copy()
    for part, whole, size, rest in (first, second, own, other), (second, first, other, own):
        seen = layout[tiles[whole]]
        lines = layout[tiles[part]]
        # Borders of the part's tile that run through the other tile.
        within = np.concatenate(
            [(seen[:, :2] < lines[:, :2]), (lines[:, 2:] < seen[:, 2:])], axis=1
        ) & np.tile((lines[:, :2] < seen[:, 2:]) & (seen[:, :2] < lines[:, 2:]), 2)
        is_cut = (cut[part] & within).any(axis=1)
        is_alone = ~np.isin(part * count + tiles[whole], matched)
        agree |= is_cut & is_alone & (size <= rest) & (both >= AGREEMENT * size)
    return np.asarray(agree, np.bool_)


def candidates(boxes: Indices, labels: Indices, groups: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of one category and different groups whose boxes overlap, the smaller number first, some at a time.

    Args:
        boxes: [N, 4] xyxy, ends exclusive.
        labels: [N] categories.
        groups: [N], as the number of the tile.
    """
    if not len(boxes):
        return
    # Along the longer side the fewest overlap.
    axis = int(np.ptp(boxes[:, 1::2]) > np.ptp(boxes[:, ::2]))
    box, band, upper = _bands(boxes[:, 1 - axis], boxes[:, 3 - axis])
    # One number for band and place: a coordinate has no more than 17 bits.
    begins = (band << 17) + boxes[box, axis]
    order = np.argsort(begins, kind="stable")
    box, band, begins = box[order], band[order], begins[order]
    ends = (band << 17) + boxes[box, axis + 2]
    counts = np.maximum(np.searchsorted(begins, ends) - np.arange(len(box)) - 1, 0)
    load = np.append(0, np.cumsum(counts))
    begin = 0
    while begin < len(box):
        end = max(int(np.searchsorted(load, load[begin] + CANDIDATES_AT_ONCE, side="right")) - 1, begin + 1)
        place = np.repeat(np.arange(begin, end), counts[begin:end])
        one = box[place]
        other = box[place + 1 + np.arange(len(place)) - (load[place] - load[begin])]
        kept = (labels[one] == labels[other]) & (groups[one] != groups[other])
        # A pair counts once: in the first band that has both.
        kept &= np.maximum(upper[one], upper[other]) == band[place]
        one, other = one[kept], other[kept]
        kept = is_filled(intersect(boxes[one], boxes[other]))
        one, other = one[kept], other[kept]
        yield np.minimum(one, other), np.maximum(one, other)
        begin = end


def _bands(begins: Indices, ends: Indices) -> tuple[Indices, Indices, Indices]:
    """Intervals in bands: [B] numbers of intervals and the band of each, once for every band that one reaches into, and
    [N] each interval's first band.

    Bands are twice as wide as intervals are on average, so B is at most 3 N, whatever the intervals.

    Args:
        begins: [N] from 0.
        ends: [N] exclusive.
    """
    width = max(int(2 * np.mean(ends - begins)), 1)
    first = begins // width
    counts = np.maximum((ends - 1) // width - first, 0) + 1
    number = np.repeat(np.arange(len(begins)), counts)
    band = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    return number, band, first


def intersect(boxes: Indices, others: Indices) -> Indices:
    """[P, 4] what pairs of boxes share, or boxes with the one other; ends before it begins where that is nothing."""
    return np.concatenate(
        [np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])], axis=1
    )


def is_filled(boxes: Indices) -> Flags:
    """[P] whether boxes have a pixel."""
    return np.asarray((boxes[:, :2] < boxes[:, 2:]).all(axis=1))
