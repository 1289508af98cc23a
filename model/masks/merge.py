"""Detections of overlapping tiles → the objects of the image, by their masks as RLE.

What another tile has inside its borders, with clearly more around it than a detection's own tile has, is left to that
tile: nearly all of what is cut in one tile and complete in another. Of the others, two detections of one category in
different tiles are one object where their masks agree inside the overlap of the tiles: in IoU, or because one that its
tile has cut lies in the other. Then

- one that is complete, because it does not touch the border of its tile and none that agrees reaches out of it, stands
  for all that agree with it, unless they score twice as high; of several complete ones the one with the highest score;
- where all are cut, their masks are united, along any chain of tiles, with the highest of their scores;
- what was found in the whole image at once stands where the tiles have less: for objects that are larger than a tile,
  or of which the tiles found only parts.

No step depends on the order of the detections. Memory and time grow with the runs and with the pairs of boxes that
overlap; there is no bitmap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from model.masks import runs
from model.masks.pairs import candidates, find_pairs, intersect, is_filled, is_seen_better, touched_borders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from model.masks.pairs import Pairs
    from model.masks.runs import ColumnRuns

    Floats = NDArray[np.float32]
    Indices = NDArray[np.int64]
    Flags = NDArray[np.bool_]

# Share of a detection outside of a tile from which on the tile has cut the object. Boxes of cut objects may end before
# the border, by a few hundredths of the object.
REACHES_OUT = 0.1
# Of the score of a cut part: a complete detection with less does not stand for it. Without score thresholds there are
# many of next to no score, which would take the places of objects that two tiles have seen in parts.
WEAK = 0.5
# Share of the object in the whole image that united parts must cover to stand for it.
COVERED = 0.8


@dataclass(frozen=True, slots=True)
class TileDetections:
    """What was found in tiles, in pixels of the image."""

    boxes: Floats  # [N, 4] xyxy
    scores: Floats  # [N]
    labels: Indices  # [N] category ids
    tiles: Indices  # [N] number of the tile
    masks: ColumnRuns  # [N]
    keypoints: Floats  # [N, K, 4] x, y, 1 and score; K is 0 where there are none
    # False: a model without masks has found them, and each mask is its box.
    has_masks: bool = True

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Indices) -> TileDetections:
        """Some of them, in the order given; index: [M]."""
        return TileDetections(
            self.boxes[index],
            self.scores[index],
            self.labels[index],
            self.tiles[index],
            self.masks.take(index),
            self.keypoints[index],
            self.has_masks,
        )

    def best(self, count: int | None = None) -> TileDetections:
        """Those with the highest scores, in an order that depends on nothing else; count: None for all."""
        columns = (self.masks.areas(), self.tiles, *self.boxes.T[::-1], self.labels, -self.scores)
        return self.take(np.lexsort(columns)[:count])


def concatenate(parts: Sequence[TileDetections]) -> TileDetections:
    """The detections of several, at least one, one after the other."""
    return TileDetections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.tiles for part in parts]),
        runs.concatenate([part.masks for part in parts]),
        np.concatenate([part.keypoints for part in parts]),
        all(part.has_masks for part in parts),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """The tiles of an image."""

    # (height, width) of the image, pixels.
    size: tuple[int, int]
    tiles: Indices  # [T, 4] xyxy of whole pixels, ends exclusive
    # (height, width) of what lies in one tile wholly, wherever it is: the least overlap of two neighbours.
    overlap: tuple[int, int]
    # The last tile is the whole image, shrunk.
    has_whole: bool = False

    def is_whole(self, tiles: Indices) -> Flags:
        """[N] which of these tile numbers mean the whole image."""
        whole: Flags = np.logical_and(self.has_whole, tiles == len(self.tiles) - 1)
        return whole

    def neighbours(self, number: int) -> Indices:
        """[M, 4] the tiles that overlap with one; the whole image is not a neighbour, and has none."""
        tiles = self.tiles[: len(self.tiles) - self.has_whole]
        if number == len(tiles):
            return tiles[:0]
        is_near = is_filled(intersect(tiles, tiles[[number]]))
        is_near[number] = False
        return tiles[is_near]


def leave_to_others(found: TileDetections, number: int, layout: Layout) -> TileDetections:
    """All but what another tile has inside its borders, with clearly more around it: that one decides.

    What has no pixel is left out, too: nothing tells what it belongs to.

    Args:
        found: in one tile.
        number: of the tile.
        layout: the tiles.
    """
    found = found.take(np.flatnonzero(found.masks.counts()))
    others = layout.neighbours(number)
    seen = is_seen_better(found.boxes, found.masks, layout.tiles[number], others, layout.size)
    return found.take(np.flatnonzero(~seen))


def merge(found: TileDetections, layout: Layout) -> TileDetections:
    """The objects of the image, by descending score. Each has the number of the tile that its best part comes from.

    Args:
        found: what `leave_to_others` leaves of all tiles, in any order.
        layout: the tiles that they were found in.
    """
    found = found.best()
    is_whole = layout.is_whole(found.tiles)
    whole, found = found.take(np.flatnonzero(is_whole)), found.take(np.flatnonzero(~is_whole))
    cut = touched_borders(found.boxes, found.masks, layout.tiles[found.tiles], layout.size)
    pairs = find_pairs(found.masks, found.labels, found.tiles, layout.tiles, cut)
    complete = ~np.asarray(cut.any(axis=1))
    # What another tile sees reaching out of a detection's own tile is not complete, though no border is touched.
    for ends, outside in (pairs.first, pairs.outside[:, 1]), (pairs.second, pairs.outside[:, 0]):
        complete[ends[outside > REACHES_OUT]] = False
    kept = _without_duplicates(complete, pairs)
    # A cut part gives way to what is complete, and what is complete to a part with a far higher score.
    is_part = ~complete
    for one, other in (pairs.first, pairs.second), (pairs.second, pairs.first):
        is_mixed = complete[other] & ~complete[one]
        is_weak = found.scores[other] < WEAK * found.scores[one]
        is_part[one[is_mixed & ~is_weak]] = False
        kept[other[is_mixed & is_weak]] = False
    objects = concatenate([found.take(np.flatnonzero(kept)), _unite(found, is_part, pairs)])
    return _with_whole(whole, objects, int(kept.sum()), layout).best()


def _without_duplicates(complete: Flags, pairs: Pairs) -> Flags:
    """[N] the complete detections that agree with none of higher score that is kept."""
    kept = complete.copy()
    both = complete[pairs.first] & complete[pairs.second]
    # Detections are numbered by descending score, and the first of a pair has the smaller number.
    order = np.lexsort((pairs.first[both], pairs.second[both]))
    for first, second in zip(
        pairs.first[both][order].tolist(), pairs.second[both][order].tolist(), strict=True
    ):
        if kept[first]:
            kept[second] = False
    return kept


def _unite(found: TileDetections, is_part: Flags, pairs: Pairs) -> TileDetections:
    """The objects that cut parts are of; one without a counterpart stays as it is. is_part: [N]."""
    parts = np.flatnonzero(is_part)
    joined = is_part[pairs.first] & is_part[pairs.second]
    root = np.arange(len(found))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = int(root[number])
        return number

    for first, second in zip(pairs.first[joined].tolist(), pairs.second[joined].tolist(), strict=True):
        one, other = find(first), find(second)
        # The root is the part with the highest score.
        root[max(one, other)] = min(one, other)
    owner = np.array([find(part) for part in parts.tolist()], dtype=np.int64)
    order = np.lexsort((parts, owner))
    members, owners = parts[order], owner[order]
    starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1])) if len(members) else members
    best = found.take(owners[starts])
    if not len(best):
        return best
    boxes = np.concatenate(
        [
            np.minimum.reduceat(found.boxes[members, :2], starts, axis=0),
            np.maximum.reduceat(found.boxes[members, 2:], starts, axis=0),
        ],
        axis=1,
    )
    masks = runs.unite(found.masks, members, np.append(starts, len(members)))
    keypoints = best.keypoints.copy()
    for number in range(keypoints.shape[1]):
        # Of the part that is surest of it: a tile guesses at those that lie outside.
        surest = np.lexsort((members, -found.keypoints[members, number, 3], owners))[starts]
        keypoints[:, number] = found.keypoints[members[surest], number]
    return replace(best, boxes=boxes, masks=masks, keypoints=keypoints)


def _with_whole(
    whole: TileDetections, objects: TileDetections, complete: int, layout: Layout
) -> TileDetections:
    """The objects of the tiles, and those of the whole image where the tiles have less.

    Args:
        whole: found in the whole image, by descending score.
        objects: found in tiles: first the complete ones, then the united ones.
        complete: how many are complete.
        layout: the tiles.
    """
    # Some tile has seen all others completely, and at a finer scale.
    is_larger = _exceeds(whole.boxes, layout.overlap)
    whole = whole.take(np.flatnonzero(is_larger))
    if not len(whole):
        return objects
    exceeds_tile = _exceeds(whole.boxes, (layout.tiles[0, 3], layout.tiles[0, 2]))
    count = len(whole)
    everything = concatenate([whole, objects])
    areas = everything.masks.areas()
    kept = np.ones(len(everything), dtype=np.bool_)
    scores = everything.scores.copy()
    for number, (overlapping, pixels) in enumerate(_find_shared(everything, count, layout.size)):
        # Objects of the tiles that are this one, or parts of it.
        inside = (2 * pixels >= areas[overlapping]) & kept[overlapping]
        others, shared = overlapping[inside], pixels[inside]
        is_complete = others < count + complete
        is_covered = shared.sum() >= COVERED * areas[number]
        if (is_complete & (2 * shared >= areas[number])).any() or (
            # Several objects, which are one at the coarser scale; or parts that make up the object.
            is_covered and (is_complete.any() or not exceeds_tile[number])
        ):
            kept[number] = False
        else:
            parts = others[~is_complete]
            kept[parts] = False
            scores[number] = max([scores[number], *scores[parts].tolist()])
    return replace(everything, scores=scores).take(np.flatnonzero(kept))


def _exceeds(boxes: Floats, size: tuple[int, int]) -> Flags:
    """[N] whether boxes are higher or wider than (height, width)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray((sides > np.array(size[::-1])).any(axis=1))


def _find_shared(
    everything: TileDetections, count: int, size: tuple[int, int]
) -> Iterator[tuple[Indices, Indices]]:
    """For each of the first `count` detections: the later ones that share pixels with it, and how many pixels."""
    is_later = (np.arange(len(everything)) >= count).astype(np.int64)
    frame = np.array([[0, 0, size[1], size[0]]], dtype=np.int64)
    found = [(np.empty(0, np.int64),) * 3]
    for first, second in candidates(everything.masks.boxes(), everything.labels, is_later):
        windows = frame.repeat(len(first), axis=0)
        found.append((first, second, runs.overlaps(everything.masks, first, second, windows)[:, 2]))
    first, second, shared = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((second, first))
    bounds = np.searchsorted(first[order], np.arange(count + 1))
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield second[order[begin:end]], shared[order[begin:end]]
