"""Masks as runs inside pixel columns: compared, united and encoded without a bitmap of the image.

A run is three numbers: column, first row, and the row behind the last. A COCO run may go on from one column into the
next one; runs inside columns can be moved to another place of a larger image, and be cut by a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.masks.polygons import Polygons, Turns, trace
from model.masks.rle import Rle, fill, from_changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

# Runs that are compared or encoded at once: some ten arrays of them, 80 MB at most.
RUNS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class ColumnRuns:
    """Masks of one image. The runs are in ascending order of mask, column and row; those of one mask do not touch."""

    # Coordinates fit into 16 bits, because no side of an image has more than 65,535 pixels.
    columns: NDArray[np.uint16]  # [K]
    tops: NDArray[np.uint16]  # [K]
    bottoms: NDArray[np.uint16]  # [K] one past the last row
    bounds: Indices  # [N + 1] the runs of mask n are bounds[n] to bounds[n + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def counts(self) -> Indices:
        """[N] runs of each mask."""
        return np.diff(self.bounds)

    def areas(self) -> Indices:
        """[N] pixels of each mask."""
        total = np.append(0, np.cumsum(self.bottoms.astype(np.int64) - self.tops))
        areas: Indices = total[self.bounds[1:]] - total[self.bounds[:-1]]
        return areas

    def take(self, masks: Indices) -> ColumnRuns:
        """Some of the masks, in the order given; masks: [M] their numbers."""
        index, bounds = self.locate(masks)
        return ColumnRuns(self.columns[index], self.tops[index], self.bottoms[index], bounds)

    def locate(self, masks: Indices) -> tuple[Indices, Indices]:
        """Where the runs of some masks are, and the bounds of each mask among them."""
        first, counts = self.bounds[masks], self.bounds[masks + 1] - self.bounds[masks]
        bounds = np.append(0, np.cumsum(counts))
        return np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], counts), bounds

    def move(self, left: int, top: int) -> ColumnRuns:
        """The masks of a tile whose first pixel is at (left, top) as masks of the image."""
        column, row = np.uint16(left), np.uint16(top)
        return ColumnRuns(self.columns + column, self.tops + row, self.bottoms + row, self.bounds)

    def boxes(self) -> Indices:
        """[N, 4] xyxy around each mask's pixels, ends exclusive; zeros for an empty one."""
        boxes = np.zeros((len(self), 4), dtype=np.int64)
        filled = np.flatnonzero(self.counts())
        if len(filled):
            first = self.bounds[:-1][filled]
            boxes[filled, 0] = self.columns[first]
            boxes[filled, 1] = np.minimum.reduceat(self.tops, first)
            boxes[filled, 2] = self.columns[self.bounds[1:][filled] - 1].astype(np.int64) + 1
            boxes[filled, 3] = np.maximum.reduceat(self.bottoms, first)
        return boxes

    def parts(self) -> Iterator[tuple[range, ColumnRuns]]:
        """The masks, some at a time, so that what is computed of them has bounded memory."""
        begin = 0
        while begin < len(self):
            room = np.searchsorted(self.bounds, self.bounds[begin] + RUNS_AT_ONCE, side="right")
            end = max(int(room) - 1, begin + 1)
            runs = slice(int(self.bounds[begin]), int(self.bounds[end]))
            bounds = self.bounds[begin : end + 1] - self.bounds[begin]
            yield (
                range(begin, end),
                ColumnRuns(self.columns[runs], self.tops[runs], self.bottoms[runs], bounds),
            )
            begin = end

    def numbers(self, pitch: int, origin: Indices) -> Indices:
        """[2 K] where runs begin and end, by turns: pixel (y, x) of mask n is origin[n] + x * pitch + y."""
        first = np.repeat(origin, self.counts()) + self.columns.astype(np.int64) * pitch
        return np.stack([first + self.tops, first + self.bottoms], axis=1).reshape(-1)

    def rles(self, size: tuple[int, int]) -> list[Rle]:
        """The masks as COCO RLE; size: (height, width) of the image."""
        found: list[Rle] = []
        for masks, part in self.parts():
            origin = np.arange(len(masks), dtype=np.int64) * (size[0] * size[1] + 1)
            found += from_changes(part.numbers(size[0], origin), range(len(masks)), size)
        return found

    def crops(self) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """For each mask left, top and the bitmap of its pixels' box; zeros and no pixel for an empty one."""
        for mask, (left, top, right, bottom) in enumerate(self.boxes().tolist()):
            own = self.take(np.array([mask]))
            height = bottom - top
            places = own.numbers(height, np.array([-left * height - top]))
            yield left, top, fill(places, (height, right - left))

    def outlines(self) -> list[Polygons]:
        """The masks as COCO polygons, through the edges of pixels; simplified as model/masks/polygons.py says."""
        found: list[Polygons] = []
        for masks, part in self.parts():
            number = np.repeat(np.arange(len(masks)), 2 * part.counts())
            rows = np.stack([part.tops, part.bottoms], axis=1).reshape(-1).astype(np.int64)
            columns = np.repeat(part.columns.astype(np.int64), 2)
            found += trace(Turns(number, columns, rows, rows.astype(np.float64)), len(masks))
        return found


def empty(masks: int = 0) -> ColumnRuns:
    """So many masks without a pixel."""
    none = np.empty(0, dtype=np.uint16)
    return ColumnRuns(none, none, none, np.zeros(masks + 1, dtype=np.int64))


def from_turns(mask: Indices, column: Indices, row: Indices, count: int) -> ColumnRuns:
    """Masks from the places where their columns turn, into the mask and out of it by turns.

    Args:
        mask: [2 K] ascending.
        column: [2 K] ascending for each mask.
        row: [2 K] ascending for each column, an even number each.
        count: of the masks.
    """
    bounds = np.searchsorted(mask[::2], np.arange(count + 1)).astype(np.int64)
    return ColumnRuns(
        column[::2].astype(np.uint16), row[::2].astype(np.uint16), row[1::2].astype(np.uint16), bounds
    )


def rectangles(boxes: Indices) -> ColumnRuns:
    """Boxes as masks, for models that find no others; boxes: [N, 4] xyxy of whole pixels, ends exclusive."""
    widths = np.where(boxes[:, 3] > boxes[:, 1], np.maximum(boxes[:, 2] - boxes[:, 0], 0), 0)
    bounds = np.append(0, np.cumsum(widths))
    columns = np.arange(bounds[-1]) + np.repeat(boxes[:, 0] - bounds[:-1], widths)
    tops, bottoms = np.repeat(boxes[:, 1], widths), np.repeat(boxes[:, 3], widths)
    return ColumnRuns(columns.astype(np.uint16), tops.astype(np.uint16), bottoms.astype(np.uint16), bounds)


def concatenate(parts: Sequence[ColumnRuns]) -> ColumnRuns:
    """The masks of several, one after the other."""
    if not parts:
        return empty()
    counts = np.concatenate([part.counts() for part in parts])
    return ColumnRuns(
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.tops for part in parts]),
        np.concatenate([part.bottoms for part in parts]),
        np.append(0, np.cumsum(counts)),
    )


def overlaps(runs: ColumnRuns, first: Indices, second: Indices, windows: Indices) -> Indices:
    """How pairs of masks overlap inside rectangles: [P, 3] pixels of the first there, of the second, and of both.

    Args:
        runs: the masks.
        first: [P] a mask of each pair.
        second: [P] the other one.
        windows: [P, 4] xyxy of whole pixels, ends exclusive.
    """
    found = np.zeros((len(first), 3), dtype=np.int64)
    load = np.append(0, np.cumsum(runs.counts()[first] + runs.counts()[second]))
    begin = 0
    while begin < len(first):
        end = max(int(np.searchsorted(load, load[begin] + RUNS_AT_ONCE, side="right")) - 1, begin + 1)
        some = slice(begin, end)
        found[some] = _overlaps(runs, first[some], second[some], windows[some])
        begin = end
    return found


def _overlaps(runs: ColumnRuns, first: Indices, second: Indices, windows: Indices) -> Indices:
    one, other = _cut(runs, first, windows), _cut(runs, second, windows)
    areas = [
        np.bincount(pair, weights=stop - start, minlength=len(first)) for pair, start, stop in (one, other)
    ]
    # Pixels of the other masks before a place, in the order of the places; runs of one mask do not overlap.
    _, start, stop = other
    before = np.append(0, np.cumsum(stop - start))

    def pixels_before(places: Indices) -> Indices:
        run = np.searchsorted(start, places, side="right") - 1
        inside = np.minimum(places, stop[run]) - start[run] if len(start) else np.zeros_like(places)
        total: Indices = np.where(run >= 0, before[run] + inside, 0)
        return total

    pair, begin, end = one
    shared = pixels_before(end) - pixels_before(begin)
    areas.append(np.bincount(pair, weights=shared, minlength=len(first)))
    return np.stack(areas, axis=1).astype(np.int64)


def _cut(runs: ColumnRuns, masks: Indices, windows: Indices) -> tuple[Indices, Indices, Indices]:
    """A mask's runs for each pair, cut by the pair's window: pair, begin and end, as numbers of all pairs' pixels."""
    index, bounds = runs.locate(masks)
    pair = np.repeat(np.arange(len(masks)), np.diff(bounds))
    left, top, right, bottom = windows[pair].T
    column = runs.columns[index].astype(np.int64)
    begin = np.maximum(runs.tops[index].astype(np.int64), top)
    end = np.minimum(runs.bottoms[index].astype(np.int64), bottom)
    kept = (begin < end) & (column >= left) & (column < right)
    # A column has less than 2^16 rows, a pair less than 2^16 columns.
    first = (pair[kept] << 32) + (column[kept] << 16)
    return pair[kept], first + begin[kept], first + end[kept]


def unite(runs: ColumnRuns, masks: Indices, bounds: Indices) -> ColumnRuns:
    """The union of each group of masks.

    Args:
        runs: the masks.
        masks: [M] numbers of masks, group by group.
        bounds: [G + 1] group g is masks[bounds[g]:bounds[g + 1]].
    """
    index, inner = runs.locate(masks)
    group = np.repeat(np.arange(len(bounds) - 1), inner[bounds[1:]] - inner[bounds[:-1]])
    if not len(index):
        return empty(len(bounds) - 1)
    # One row more than there can be, so that no column's end is the next one's beginning.
    column = (group << 33) + (runs.columns[index].astype(np.int64) << 17)
    start, stop = column + runs.tops[index], column + runs.bottoms[index]
    order = np.argsort(start, kind="stable")
    start, stop = start[order], np.maximum.accumulate(stop[order])
    opens = np.append(True, start[1:] > stop[:-1])
    first = start[opens]
    last = stop[np.append(opens[1:], True)]
    return ColumnRuns(
        (first >> 17 & 0xFFFF).astype(np.uint16),
        (first & 0x1FFFF).astype(np.uint16),
        (last & 0x1FFFF).astype(np.uint16),
        np.searchsorted(first >> 33, np.arange(len(bounds))).astype(np.int64),
    )
