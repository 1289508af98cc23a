"""Outlines as COCO polygons: traced from the places where columns turn, then simplified.

A polygon goes through the middle of every pixel column that it crosses, between the last pixel outside and the
first inside, so that filling it by pixel centres gives the mask back; only then is it simplified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    # x + iy: arithmetic in the plane, in half the time of an array with two columns.
    Points = NDArray[np.complex128]
    Indices = NDArray[np.int64]
    Flags = NDArray[np.bool_]

# Of a pixel; what is left after simplification is worth no more.
DECIMALS = 1
# Pixels that a simplified outline may lie off, if its object is not too thin for them.
SMALLEST = 0.4
# Likewise, of an object's area over its outline's length: IoU stays above 0.98, see docs/using.md.
SHARE = 0.05
# Rows from one column to the next.
STEEP = 2
# Rings of so few points are not simplified: a single pixel has six.
WHOLE_RING = 8


class Polygons(NamedTuple):
    """One mask as COCO polygons."""

    # Each [x1, y1, x2, y2, …], pixels; pixel (0, 0) reaches from 0, 0 to 1, 1.
    parts: list[list[float]]
    # Pixels of the mask that they were made from.
    area: int


@dataclass(frozen=True, slots=True)
class Turns:
    """Where masks turn, column by column: into the mask and out of it by turns, an even number a column.

    All arrays are [K], in ascending order of mask, column and row.
    """

    mask: Indices
    column: Indices
    # First pixel row behind the turn.
    row: Indices
    # Where the outline crosses the column's middle, within half a pixel of `row`.
    exact: Floats


def trace(turns: Turns, count: int) -> list[Polygons]:
    """The outlines of `count` masks. Pixels that touch at a corner belong to one part.

    COCO fills all polygons of a mask, so a hole is no polygon of its own: the outline around it goes in to it along
    a seam, around it, and back along the same seam. Time grows with the outlines' length.
    """
    points, ring, fixed, starts = _chain(turns)
    area = _areas(turns, count)
    mask = turns.mask[starts]  # [R] of each ring
    kept = simplify(points, ring, _tolerance(area, _lengths(points, ring, mask, count))[mask], fixed)
    parts: list[list[list[float]]] = [[] for _ in range(count)]
    flat = np.round(points[kept].view(np.float64), DECIMALS).tolist()
    bounds = np.searchsorted(ring[kept], np.arange(len(mask) + 1)).tolist()
    for index, number in enumerate(mask.tolist()):
        parts[number].append(flat[2 * bounds[index] : 2 * bounds[index + 1]])
    return [Polygons(rings, pixels) for rings, pixels in zip(parts, area.tolist(), strict=True)]


def _areas(turns: Turns, count: int) -> Indices:
    runs = turns.row[1::2] - turns.row[::2]
    return np.bincount(turns.mask[::2], weights=runs, minlength=count).astype(np.int64)


def _lengths(points: Points, ring: Indices, mask: Indices, count: int) -> Floats:
    """How long the outlines of each mask are together, pixels."""
    steps = np.abs(np.diff(points, prepend=points[-1:]))
    # From one ring to the next.
    steps[np.diff(ring, prepend=-1) > 0] = 0
    lengths: Floats = np.bincount(mask[ring], weights=steps, minlength=count).astype(np.float64)
    return lengths


def _tolerance(area: Indices, length: Floats) -> Floats:
    """How far a simplified outline may lie from the true one, pixels.

    A 400th of an object's side is not seen, nor is what pixels hide anyway. But all that lies along the outline costs
    IoU by the ratio of its length to the area, so that thin and ragged objects get less.
    """
    side = np.sqrt(area)
    return np.minimum(np.maximum(SMALLEST, side / 400), SHARE * area / np.maximum(length, 1))


def _chain(turns: Turns) -> tuple[Points, Indices, Flags, Indices]:
    """The rings' points [P] in order, the ring of each, those to be kept, and a turn of each ring [R]."""
    successor, bend = _link(turns)
    order, starts = _walk(successor)
    # A ring's first turn is its uppermost in its leftmost column: a way into the mask, unless it surrounds a hole.
    holes = starts[starts % 2 == 1]
    seams = np.concatenate([holes, holes - 1])
    node = np.arange(len(successor))
    if len(holes):
        # The hole lies under the run from turn hole - 1 to turn `hole`. Both get a twin to come back to.
        twins = len(node) + np.arange(len(seams)).reshape(2, -1)
        successor = np.concatenate([successor, successor[seams]])
        bend = np.concatenate([bend, bend[seams]])
        node = np.concatenate([node, seams])
        successor[holes - 1], successor[holes] = twins[0], twins[1]
        bend[seams] = 0
        order, starts = _walk(successor)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    ring = np.cumsum(np.isin(order, starts, assume_unique=True)) - 1
    seamed = np.zeros(len(order), dtype=np.bool_)
    seamed[seams] = seamed[len(turns.row) :] = True

    here, onward = node[order], node[successor[order]]
    x, y = turns.column[here] + 0.5, turns.exact[here]
    side = bend[order]
    back = side != 0
    # Beside a step of several rows the outline lies level through the middle of the column: two points, where one would
    # be moved by a filler's rounding and the step's slope make rows of it.
    steep = ~back & (np.abs(turns.exact[onward] - y) > STEEP)
    level = np.zeros(len(order), dtype=np.bool_)
    level[order[steep]] = level[successor[order[steep]]] = True
    level = level[order] & ~seamed[order]
    # Fifths of a pixel are what pycocotools rounds to.
    ahead = np.where(here % 2 == 0, 0.1, -0.1) * level
    # Where the outline turns back in a column, it does so half a pixel on, at the pixels' edge: two points more.
    count = 1 + level + 2 * back
    # Of each turn's first point.
    number = np.cumsum(count) - count
    points = np.empty(int(count.sum()), dtype=np.complex128)
    points[number] = x - ahead + 1j * y
    last = number + level
    points[last] = x + ahead + 1j * y
    edge = x[back] + 0.5 * side[back]
    points[last[back] + 1] = edge + 1j * y[back]
    points[last[back] + 2] = edge + 1j * turns.exact[onward[back]]
    of_ring = np.repeat(ring, count)
    fixed = np.zeros(len(points), dtype=np.bool_)
    fixed[number] = seamed[order]
    return points, of_ring, fixed, node[starts]


def _link(turns: Turns) -> tuple[Indices, Indices]:
    """Each turn's successor on its outline, the mask to the right of the way, and how the way bends there.

    A turn's edge of the pixels reaches from its column's left border to its right one; ways into the mask (even
    numbers) are walked to the right, ways out to the left. On a border the ends of both columns' edges, sorted,
    are joined two by two: between them one column is inside and the other is not. The bend is 0 where the next
    turn is in the neighbouring column, 1 or -1 where it is in the same one, beyond its right or left border.
    """
    count = len(turns.row)
    # Where two ends coincide, ways in come first: corners that touch are joined.
    kind = np.arange(count) % 2
    border = turns.mask * (turns.column.max(initial=0) + 2) + turns.column
    keys = (border * (turns.row.max(initial=0) + 1) + turns.row) * 2 + kind
    step = 2 * (int(turns.row.max(initial=0)) + 1)
    # A stable sort merges the two halves, which are sorted already.
    ends = np.argsort(np.concatenate([keys, keys + step]), kind="stable").reshape(-1, 2)
    turn = ends % max(count, 1)
    # At its column's right border.
    right = ends >= count
    leaves = right == (turn % 2 == 0)
    first = leaves[:, 0]
    source, target = np.where(first, turn.T, turn.T[::-1])
    successor = np.empty(count, dtype=np.int64)
    successor[source] = target
    bend = np.zeros(count, dtype=np.int64)
    bend[source] = np.where(right[:, 0] == right[:, 1], np.where(right[:, 0], 1, -1), 0)
    return successor, bend


def _walk(successor: Indices) -> tuple[Indices, Indices]:
    """The turns ring by ring, and the ring's first ones, which have its lowest numbers."""
    following = successor.tolist()
    order: list[int] = []
    starts: list[int] = []
    fresh = bytearray(b"\1") * len(following)
    start = fresh.find(1)
    while start >= 0:
        starts.append(start)
        turn = start
        while fresh[turn]:
            fresh[turn] = 0
            order.append(turn)
            turn = following[turn]
        start = fresh.find(1, start)
    return np.array(order, dtype=np.int64), np.array(starts, dtype=np.int64)


def simplify(points: Points, ring: Indices, tolerance: Floats, fixed: Flags) -> Flags:
    """Which points of closed rings to keep (Douglas and Peucker, 1973), all rings at once.

    Args:
        points: [P] ring after ring.
        ring: [P] number of each point's ring, ascending from 0.
        tolerance: [R] how far a point that is left out may lie from the line that stands for it, pixels.
        fixed: [P] to be kept in any case.
    """
    rings = np.arange(len(tolerance))
    begin, end = np.searchsorted(ring, rings), np.searchsorted(ring, rings, side="right")
    keep = fixed | (end - begin <= WHOLE_RING)[ring]
    keep[begin] = True
    # Besides its first point, a ring needs one to part it in two chains: the one farthest away.
    keep[_farthest(np.abs(points - points[begin[ring]]), begin)] = True
    chain = np.append(np.flatnonzero(keep), len(points))
    pending = np.flatnonzero(~keep)
    while len(pending):
        after = np.searchsorted(chain, pending)
        lower, upper = chain[after - 1], chain[after]
        closing = (upper == len(points)) | (ring[np.minimum(upper, len(points) - 1)] != ring[pending])
        upper = np.where(closing, begin[ring[pending]], upper)
        distance = _distance(points[pending], points[lower], points[upper])
        first = np.flatnonzero(np.diff(after, prepend=-1))
        worst = _farthest(distance, first)
        split = distance[worst] > tolerance[ring[pending[worst]]]
        keep[pending[worst[split]]] = True
        unsettled = np.repeat(split, np.diff(np.append(first, len(pending))))
        unsettled[worst] = False
        pending = pending[unsettled]
        chain = np.append(np.flatnonzero(keep), len(points))
    collapsed = np.add.reduceat(keep, begin, dtype=np.int64) < 3 if len(begin) else np.zeros(0, np.bool_)
    kept: Flags = keep | collapsed[ring]
    return kept


def _farthest(distance: Floats, first: Indices) -> Indices:
    """Where in each group, which `first` begins, the distance is greatest."""
    if not len(first):
        return first
    greatest = np.maximum.reduceat(distance, first)
    size = np.diff(np.append(first, len(distance)))
    found = np.flatnonzero(distance == np.repeat(greatest, size))
    group = np.searchsorted(first, found, side="right") - 1
    return found[np.flatnonzero(np.diff(group, prepend=-1))]


def _distance(points: Points, start: Points, end: Points) -> Floats:
    """From points to the lines between start and end, which reach no farther than these."""
    line, to_point = end - start, points - start
    squared = line.real**2 + line.imag**2
    along = (line.real * to_point.real + line.imag * to_point.imag) / np.where(squared > 0, squared, 1)
    distance: Floats = np.abs(to_point - line * np.clip(along, 0, 1))
    return distance
