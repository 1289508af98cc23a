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
    from model.network.architecture import Architecture

# Pixels of a tile's side. Below, most of a tile is overlap, and objects have no surroundings.
MIN_TILE = 64
MAX_TILE = MAX_SIDE
# Share of a tile's side. Without any, nothing tells which parts belong together; from half on every pixel would be
# computed more than four times.
MIN_OVERLAP, MAX_OVERLAP = 0.05, 0.5
# Where it is not known how large a model's objects are, and the least that is chosen.
DEFAULT_OVERLAP = 0.2
# Of one image: a gigapixel in tiles of 384 pixels that overlap by a quarter.
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
    # Of neighbouring tiles, as a share of their side, at least.
    overlap: float = DEFAULT_OVERLAP
    # Whether the whole image, shrunk to the network's input, is one more tile; None: if the tile is chosen.
    whole: bool | None = None

    def cut(self, height: int, width: int, architecture: Architecture) -> Layout | None:
        """The tiles of an image; None where it is segmented as it is, because one tile would cover it.

        Raises TilingError where there would be more than MOST_TILES.
        """
        if max(height, width) > MAX_SIDE:
            raise TilingError(f"An image has at most {MAX_SIDE} pixels a side, not {width} × {height}.")
        side = self.tile if self.tile is not None else choose_tile(height, width, architecture, self.overlap)
        if side is None or (height <= side and width <= side):
            return None
        rows, high, shared_rows = _starts(height, side, self.overlap)
        columns, wide, shared_columns = _starts(width, side, self.overlap)
        if len(rows) * len(columns) > MOST_TILES:
            raise TilingError(
                f"The image of {width} × {height} pixels has {len(rows) * len(columns)} tiles of {side} × {side} "
                f"that overlap by {self.overlap:g}; at most {MOST_TILES} are accepted. Take larger tiles, or a "
                "smaller overlap."
            )
        tiles = [(left, top, left + wide, top + high) for top in rows for left in columns]
        has_whole = self.tile is None if self.whole is None else self.whole
        if has_whole:
            tiles.append((0, 0, width, height))
        return Layout(
            (height, width), np.array(tiles, dtype=np.int64), (shared_rows, shared_columns), has_whole
        )


def choose_overlap(object_extent: float) -> float:
    """The overlap in which most of a model's objects lie completely; object_extent: as Model has it."""
    return min(max(DEFAULT_OVERLAP, object_extent), MAX_OVERLAP)


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
    while math.prod(len(_starts(n, side, overlap)[0]) for n in (height, width)) > MOST_TILES:
        side *= 2
    return side


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
