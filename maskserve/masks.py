"""Masks of an answer as bitmaps and back: COCO RLE and polygons, one mask at a time, with NumPy alone.

The engine's own encoder (`model.masks`) works on many masks at once and never makes a bitmap. The client needs the
opposite and has to do without torch, so this is a second, small implementation; tests hold the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Polygons that reach further out than this are an error: they would overflow the arithmetic.
FARTHEST = 1e6
# Columns that the edges of one polygon cross, together: each takes 50 bytes while it is filled.
MOST_CROSSINGS = 10_000_000
# A count in COCO RLE has 32 bits, its difference to another one more: seven groups of five bits.
MOST_GROUPS = 7


def decode_rle(segmentation: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [H, W] of COCO RLE, in Fortran order.

    segmentation: `size` as [height, width] and `counts` as a string or a list of runs, column by column, background
    first. size: (height, width) of the image.
    Raises ValueError where the two sizes differ, or the runs are no mask of that size.
    """
    return paint(_read_runs(segmentation, size), size)


def decode_columns(segmentation: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, NDArray[np.bool_]]:
    """The columns of a mask that are not empty: the first one's number, and their pixels [H, w].

    Memory grows with the object's width, not with the image. Arguments and errors as for `decode_rle`.
    """
    runs = _read_runs(segmentation, size)
    ends = np.cumsum(runs)
    # Where the foreground begins, and the pixel after it.
    begins, stops = ends[:-1:2], ends[1::2]
    filled = begins < stops
    if not filled.any():
        return 0, np.zeros((size[0], 0), dtype=np.bool_)
    first = int(begins[filled][0]) // size[0]
    last = (int(stops[filled][-1]) - 1) // size[0] + 1
    inside = np.clip(ends, first * size[0], last * size[0])
    inner = np.diff(np.append(first * size[0], inside))
    return first, paint(inner, (size[0], last - first))


def _read_runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.int64]:
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"a mask of {segmentation['size']} pixels in an image of {list(size)}")
    counts = segmentation["counts"]
    runs = np.array(parse_counts(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    # Each on its own first: huge ones could add up to the right number modulo 2^64.
    pixels = size[0] * size[1]
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"the runs do not add up to the mask's {size[0] * size[1]} pixels")
    return runs


def parse_counts(text: str) -> list[int]:
    """The lengths of the runs in a string of compressed COCO RLE. Raises ValueError where it is none.

    The format is that of cocoapi's maskApi.c: five bits to a character, the lowest first, 32 for "there is more";
    from the fourth count on the difference to the one two before.
    """
    runs: list[int] = []
    value = groups = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or groups == MOST_GROUPS:
            raise ValueError("not a string of compressed COCO RLE")
        value |= (code & 31) << (5 * groups)
        groups += 1
        if code & 32:
            continue
        if code & 16:
            value -= 1 << (5 * groups)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = groups = 0
    if groups:
        raise ValueError("a string of compressed COCO RLE that was cut short")
    return runs


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] as compressed COCO RLE, byte-identical to what `pycocotools.mask.encode` makes."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    runs = np.diff(changes, prepend=0, append=flat.size).tolist()
    characters = []
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            group = value & 31
            value >>= 5
            # The top bit of the last group is the sign.
            more = value != (-1 if group & 16 else 0)
            characters.append(chr(48 + group + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(characters)}


def fill_polygons(parts: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [H, W] whose pixels have their centres inside the polygons, in Fortran order.

    parts: each [x1, y1, x2, y2, …] in pixels, pixel (0, 0) reaching from 0, 0 to 1, 1. A seam that is followed twice
    leaves no trace. Parts that overlap are united. size: (height, width) of the image.
    Raises ValueError for what is no polygon.
    """
    height, width = size
    union = np.zeros(size, dtype=np.bool_, order="F")
    for part in parts:
        flat = np.array(part, dtype=np.float64)
        if flat.ndim != 1 or len(flat) % 2 or not (np.abs(flat) <= FARTHEST).all():
            raise ValueError("a polygon is a list of numbers, x and y by turns, in or near the image")
        x, y = flat.reshape(-1, 2).T
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        # The columns whose middle each edge crosses, and where.
        begin = np.clip(np.ceil(np.minimum(x, next_x) - 0.5), 0, width).astype(np.int64)
        stop = np.clip(np.ceil(np.maximum(x, next_x) - 0.5), 0, width).astype(np.int64)
        crossed = stop - begin
        if crossed.sum() > MOST_CROSSINGS:
            raise ValueError("a polygon whose edges cross too many columns")
        edge = np.repeat(np.arange(len(x)), crossed)
        column = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + begin[edge]
        slope = (next_y - y)[edge] / np.where(crossed, next_x - x, 1)[edge]
        crossing = y[edge] + (column + 0.5 - x[edge]) * slope
        row = np.clip(np.ceil(crossing - 0.5), 0, height).astype(np.int64)
        # Columns of one row more, for what ends at the lower border.
        changes = np.sort(column * (height + 1) + row)
        runs = np.diff(changes, prepend=0, append=(height + 1) * width)
        union |= paint(runs, (height + 1, width))[:height]
    return union


def paint(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The bitmap [H, W] of runs that add up to its pixels, in Fortran order."""
    foreground = np.arange(len(runs)) & 1 == 1
    return np.repeat(foreground, runs).reshape(size[::-1]).T
