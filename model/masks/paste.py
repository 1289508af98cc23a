"""Instance masks from the mask head's small maps: RLE, bitmaps and polygons, never an N × H × W stack.

A pixel is foreground exactly where torchvision's `paste_masks_in_image` on the CPU exceeds the threshold, or by the
rule "detectron2" where a map sampled at the pixel's centre reaches it: torchvision lays maps on whole pixels,
Detectron2 and MMDetection do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from model.masks import bilinear
from model.masks.edges import changes
from model.masks.placement import Placement
from model.masks.polygons import Polygons, Turns, trace
from model.masks.rle import Rle, decode, drop_pairs, encode, fill, from_changes
from model.masks.runs import concatenate, from_turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from model.masks.runs import ColumnRuns

    Indices = NDArray[np.int64]

__all__ = ["Crop", "Polygons", "Rle", "column_runs", "crops", "decode", "encode", "outlines", "paste"]

RULES = ("torchvision", "detectron2")
# Pixels; no image, and no map that torchvision could allocate, reaches so far.
MAX_DISTANCE = 1 << 31


class Crop(NamedTuple):
    """The part of the image that one mask's box covers."""

    # Of the bitmap's first column, pixels of the image.
    left: int
    # Of its first row.
    top: int
    bitmap: NDArray[np.bool_]  # [h, w] in Fortran order; both 0 where the box does not touch the image


def paste(
    probabilities: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    rule: str = "torchvision",
) -> list[Rle]:
    """Masks of one image as COCO RLE (Mask R-CNN, section 3.1, "mask representation").

    Args:
        probabilities: [N, M, M] float32, one map per box (M is 28 in the paper).
        boxes: [N, 4] float32 xyxy in pixels of the image.
        size: (height, width) of the image.
        threshold: in [0, 1), foreground is above it, or with Detectron2's rule at least it.
        rule: "torchvision" or "detectron2".

    Time and memory grow with the outlines' length, not with any area.

    A box that lies off the image, ends before it begins or is not finite gives an empty mask; torchvision
    raises RuntimeError for most of these. Raises ValueError where shapes or threshold are not as above.
    """
    _check(probabilities, boxes, size, threshold, rule)
    if not len(boxes):
        return []
    placed = _place(probabilities, boxes, size, threshold, rule)
    return [rle for masks, found in changes(placed) for rle in from_changes(found, masks, size)]


def crops(
    probabilities: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    rule: str = "torchvision",
) -> Iterator[Crop]:
    """The same masks as bitmaps, each cut to its box and zero outside.

    Args:
        probabilities: [N, M, M] float32, one map per box.
        boxes: [N, 4] float32 xyxy in pixels of the image.
        size: (height, width) of the image.
        threshold: in [0, 1), as for `paste`.
        rule: "torchvision" or "detectron2".
    """
    _check(probabilities, boxes, size, threshold, rule)
    placed = _place(probabilities, boxes, size, threshold, rule)
    (top, left), (height, width) = placed.start, placed.stop - placed.start
    # Numbers of the crops' first pixels.
    first = np.append(0, np.cumsum(height * width + 1))
    placed = replace(placed, origin=first[:-1] - left * height - top, pitch=height)
    for masks, found in changes(placed):
        bounds = np.searchsorted(found, first[masks.start : masks.stop + 1])
        for mask, begin, end in zip(masks, bounds[:-1], bounds[1:], strict=True):
            bitmap = fill(found[begin:end] - first[mask], (int(height[mask]), int(width[mask])))
            yield Crop(int(left[mask]), int(top[mask]), bitmap)


def outlines(
    probabilities: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    rule: str = "torchvision",
) -> list[Polygons]:
    """The same masks as COCO polygons, simplified to about a 400th of an object's side.

    Args:
        probabilities: [N, M, M] float32, one map per box.
        boxes: [N, 4] float32 xyxy in pixels of the image.
        size: (height, width) of the image.
        threshold: in [0, 1), as for `paste`.
        rule: "torchvision" or "detectron2".
    """
    _check(probabilities, boxes, size, threshold, rule)
    placed = _place(probabilities, boxes, size, threshold, rule)
    top, height = placed.start[0], placed.stop[0] - placed.start[0]
    found: list[Polygons] = []
    for masks, mask, column, row in _turns(placed):
        above = row - 1 - placed.corner[0, mask]
        rows = placed.in_samples(0, mask, above), placed.in_samples(0, mask, above + 1)
        across = placed.in_samples(1, mask, column - placed.corner[1, mask])
        exact = bilinear.crossings(placed.grids, placed.threshold, mask, across, rows)
        # Cut off by the image there.
        border = (row == top[mask]) | (row == top[mask] + height[mask])
        exact = np.where(border, row, row - 0.5 + exact)
        found += trace(Turns(mask - masks.start, column, row, exact), len(masks))
    return found


def column_runs(
    probabilities: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    rule: str = "torchvision",
) -> ColumnRuns:
    """The same masks as runs of pixel columns, which can be compared and moved.

    Args:
        probabilities: [N, M, M] float32, one map per box.
        boxes: [N, 4] float32 xyxy in pixels of the image.
        size: (height, width) of the image.
        threshold: in [0, 1), as for `paste`.
        rule: "torchvision" or "detectron2".
    """
    _check(probabilities, boxes, size, threshold, rule)
    placed = _place(probabilities, boxes, size, threshold, rule)
    return concatenate(
        [
            from_turns(mask - masks.start, column, row, len(masks))
            for masks, mask, column, row in _turns(placed)
        ]
    )


def _turns(placed: Placement) -> Iterator[tuple[range, Indices, Indices, Indices]]:
    """Where the columns of some masks turn, in and out by turns: mask, column and row in the image."""
    (top, left), (height, width) = placed.start, placed.stop - placed.start
    # One row more than there are, so that no column's end is the next one's beginning.
    pitch = height + 1
    first = np.append(0, np.cumsum(width * pitch))
    placed = replace(placed, origin=first[:-1] - left * pitch - top, pitch=pitch)
    for masks, turns in changes(placed):
        place = drop_pairs(turns)
        mask = np.searchsorted(first, place, side="right") - 1
        column, row = np.divmod(place - first[mask], pitch[mask])
        yield masks, mask, column + left[mask], row + top[mask]


def _place(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, rule: str
) -> Placement:
    """Where a framework lays the maps: with a border of zeros, in boxes larger by that."""
    side = probabilities.shape[1]
    grids = np.zeros((len(boxes), side + 2, side + 2), dtype=np.float32)
    grids[:, 1:-1, 1:-1] = probabilities.detach().cpu().numpy()
    # Two of [2, N]: y and x of where boxes begin, and of where they end.
    ends = boxes.detach().to("cpu", torch.float32).numpy().T.reshape(2, 2, -1)[:, ::-1]
    begin = spacing = None
    if rule == "torchvision":
        with np.errstate(invalid="ignore", over="ignore"):
            half = (ends[1] - ends[0]) * 0.5 * ((side + 2) / side)
            centre = (ends[1] + ends[0]) * 0.5
            ends = np.stack([centre - half, centre + half])
            # False for what is not finite, too.
            valid = (np.abs(ends) < MAX_DISTANCE).all(axis=(0, 1))
        # Towards zero; both inside the box.
        corner, last = np.where(valid, ends, -1).astype(np.int64)
    else:
        valid = (np.abs(ends) < MAX_DISTANCE).all(axis=(0, 1)) & (ends[0] < ends[1]).all(axis=0)
        ends = np.where(valid, ends, np.array([0.0, 1.0]).reshape(2, 1, 1)).astype(np.float64)
        spacing = (ends[1] - ends[0]) / side
        # Samples lie in the middle of a map's cells, and pixels' centres half a pixel from the corner.
        first, final = ends[0] - 0.5 * spacing - 0.5, ends[1] + 0.5 * spacing - 0.5
        corner, last = np.ceil(first).astype(np.int64), np.floor(final).astype(np.int64)
        begin = first - corner
        last[:, ~valid] = corner[:, ~valid] - 1
    limit = np.array(size)[:, None]
    start = np.minimum(np.maximum(corner, 0), limit)
    stop = np.minimum(np.maximum(last + 1, 0), limit)
    empty = (start >= stop).any(0)
    start[:, empty] = stop[:, empty] = 0
    return Placement(
        grids=grids,
        threshold=np.float32(threshold),
        corner=corner,
        sides=np.maximum(last - corner + 1, 1),
        start=start,
        stop=stop,
        origin=np.arange(len(grids), dtype=np.int64) * (size[0] * size[1] + 1),
        pitch=np.full(len(grids), size[0], dtype=np.int64),
        begin=begin,
        spacing=spacing,
    )


def _check(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, rule: str) -> None:
    if (
        probabilities.ndim != 3
        or probabilities.shape[1] != probabilities.shape[2]
        or not probabilities.shape[1]
    ):
        raise ValueError(f"probabilities must be [N, M, M], not {list(probabilities.shape)}")
    if boxes.shape != (len(probabilities), 4):
        raise ValueError(f"boxes must be [{len(probabilities)}, 4], not {list(boxes.shape)}")
    if min(size) < 0:
        raise ValueError(f"an image cannot be {size[0]} × {size[1]} pixels")
    if not 0 <= threshold < 1:
        raise ValueError(f"the threshold must be in [0, 1), not {threshold}")
    if rule not in RULES:
        raise ValueError(f"masks are pasted by one of the rules {', '.join(RULES)}, not {rule!r}")
