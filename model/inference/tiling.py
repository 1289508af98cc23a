"""How a large image is cut into tiles: overlapping, of one shape, so that they run as a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from model.images.formats import MAX_SIDE
from model.masks.merge import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.network.architecture import Architecture
    from model.zoo.model_file import Model

# Pixels of a tile's side. Below, most of a tile is overlap, and objects have no surroundings.
MIN_TILE = 64
MAX_TILE = MAX_SIDE
# Share of a tile's side. Without any, nothing tells which parts belong together; from half on every pixel would be
# computed more than four times.
MIN_OVERLAP, MAX_OVERLAP = 0.05, 0.5
# Where it is not known how large a model's objects are, and the least that is chosen.
DEFAULT_OVERLAP = 0.2
# The share of a model's objects that its `object_extent` holds for. 36 drawn scenes lost 0.9 and 1.0 points of box and
# mask AP in tiles that overlap by a third, which holds for three quarters of the objects, and 0.6 and 0.7 by 0.4.
EXTENT_QUANTILE = 0.9
# Of one image: a gigapixel in tiles of 384 pixels that overlap by a third.
MOST_TILES = 16_384
# Detections in all tiles of one image: those with the highest scores are merged.
MOST_MERGED = 100_000


class TilingError(ValueError):
    """The image cannot be cut like that; the message says why, and what would do."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What is asked for."""

    # Side in pixels of the image; None: as `choose_tile` finds it.
    tile: int | None = None
    # Of neighbouring tiles, as a share of their side, at least; None: as `choose_overlap` finds it.
    overlap: float | None = None
    # Whether the whole image, shrunk to the network's input, is one more tile; None: if the tile is chosen.
    whole: bool | None = None

    def cut(self, height: int, width: int, model: Model) -> Layout | None:
        """The tiles of an image for a model; None where it is segmented as it is, because one tile would cover it.

        Args:
            height: of the image, pixels.
            width: of the image, pixels.
            model: whose input and objects tiles are chosen for.

        Raises TilingError where there would be more than MOST_TILES.
        """
        if max(height, width) > MAX_SIDE:
            raise TilingError(f"An image has at most {MAX_SIDE} pixels a side, not {width} × {height}.")
        side, overlap = self.tile, self.overlap
        if side is None:
            side = choose_tile(
                height, width, model.architecture, DEFAULT_OVERLAP if overlap is None else overlap
            )
        if side is None or (height <= side and width <= side):
            return None
        if overlap is None:
            overlap = choose_overlap(height, width, side, model)
        rows, high, shared_rows = _starts(height, side, overlap)
        columns, wide, shared_columns = _starts(width, side, overlap)
        if len(rows) * len(columns) > MOST_TILES:
            raise TilingError(
                f"The image of {width} × {height} pixels has {len(rows) * len(columns)} tiles of {side} × {side} "
                f"that overlap by {overlap:g}; at most {MOST_TILES} are accepted. Take larger tiles, or a "
                "smaller overlap."
            )
        tiles = [(left, top, left + wide, top + high) for top in rows for left in columns]
        has_whole = self.tile is None if self.whole is None else self.whole
        if has_whole:
            tiles.append((0, 0, width, height))
        return Layout(
            (height, width), np.array(tiles, dtype=np.int64), (shared_rows, shared_columns), has_whole
        )


def choose_tile(
    height: int, width: int, architecture: Architecture, overlap: float = DEFAULT_OVERLAP
) -> int | None:
    """The side of tiles that reach the network in their own resolution; None where the whole image nearly does.

    The smallest anchor is the smallest object that the network looks for, and it was trained on inputs of its own
    `min_size`. In a square tile of that side a pixel stays a pixel, so an object of the smallest anchor's size has that
    size in the input, too. An image that is no higher or no wider than that is cut into tiles as long as an input may
    be. Anchors are a factor apart, usually 2: an image that is shrunk by less than the factor's square root is left
    whole, because an object of the smallest anchor's size is still nearest to this anchor. The side grows where there
    would be more than MOST_TILES.

    Args:
        height: of the image, pixels.
        width: likewise.
        architecture: of the model.
        overlap: of neighbouring tiles, as a share of their side.
    """
    levels = architecture.conventions.anchor_levels or (architecture.anchor_sizes,)
    smallest, *larger = sorted({float(size) for level in levels for size in level})
    tolerance = math.sqrt(larger[0] / smallest) if larger else math.sqrt(2)
    if architecture.input_size(height, width)[0] * tolerance >= height:
        return None
    is_strip = min(height, width) <= architecture.min_size
    side = max(architecture.max_size if is_strip else architecture.min_size, MIN_TILE)
    while _count(height, width, side, overlap) > MOST_TILES:
        side *= 2
    return side


def choose_overlap(height: int, width: int, side: int, model: Model) -> float:
    """The overlap, as a share of a tile's side, that most of a model's objects are smaller than.

    An object of `object_extent` has that share of a square tile, and less of one that is longer. It is DEFAULT_OVERLAP
    at least, also where it is not known how large the objects are or there would be more than MOST_TILES, and
    MAX_OVERLAP at most.

    Args:
        height: of the image, pixels.
        width: likewise.
        side: of a tile, pixels.
        model: the model.
    """
    tile = min(height, side), min(width, side)
    scale = model.architecture.input_size(*tile)[0] / tile[0]
    share = limit_overlap(model.object_extent * model.architecture.min_size / (scale * side))
    return share if _count(height, width, side, share) <= MOST_TILES else DEFAULT_OVERLAP


def limit_overlap(share: float) -> float:
    """The nearest overlap that is chosen without being asked for."""
    return min(max(DEFAULT_OVERLAP, share), MAX_OVERLAP)


def relative_extents(
    boxes: NDArray[np.float32], size: tuple[int, int], architecture: Architecture
) -> list[float]:
    """[N] the longer side of each object in the network's input, as a share of `min_size`.

    Args:
        boxes: [N, 4] xyxy of an image's objects, pixels.
        size: (height, width) of the image.
        architecture: of the network.
    """
    scale = architecture.input_size(*size)[0] / size[0]
    extents: list[float] = (
        (boxes[:, 2:] - boxes[:, :2]).max(axis=1) * scale / architecture.min_size
    ).tolist()
    return extents


def object_extent(extents: Sequence[float]) -> float:
    """What Model knows of its objects by that name; extents: of a sample of them, at least one."""
    return round(float(np.quantile(extents, EXTENT_QUANTILE)), 2)


def _count(height: int, width: int, side: int, overlap: float) -> int:
    return math.prod(len(_starts(length, side, overlap)[0]) for length in (height, width))


def _starts(length: int, side: int, overlap: float) -> tuple[list[int], int, int]:
    """Where tiles begin along an axis, their length, and the least overlap of two.

    They are spread evenly, so that the last one ends with the image and none is smaller.

    Args:
        length: of the image, pixels.
        side: of a tile, pixels.
        overlap: share of the side.
    """
    if length <= side:
        return [0], length, length
    step = max(1, side - math.ceil(overlap * side))
    count = 1 + math.ceil((length - side) / step)
    starts = [index * (length - side) // (count - 1) for index in range(count)]
    return starts, side, side - max(after - before for before, after in pairwise(starts))
