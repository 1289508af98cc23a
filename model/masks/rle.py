"""COCO RLE: a bitmap as the byte string that pycocotools reads and writes, without pycocotools.

The format is that of cocoapi's maskApi.c: pixels in column-major order, alternating runs, background
first, each count after the third stored as the difference to the one two before it, five bits to a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class CocoRle(TypedDict):
    """The `segmentation` of a COCO results record."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Rle:
    """One mask as compressed COCO RLE."""

    # (height, width), pixels.
    size: tuple[int, int]
    # ASCII 48 to 111.
    counts: bytes
    # Foreground pixels.
    area: int

    def to_coco(self) -> CocoRle:
        """The mask as a COCO results record carries it in JSON."""
        return {"size": list(self.size), "counts": self.counts.decode("ascii")}

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, object]) -> Rle:
        """Read a COCO `segmentation` in RLE: compressed (str or bytes) or a plain list of counts.

        Raises ValueError where the runs do not add up to the size or the string is not one.
        """
        match segmentation:
            case {"size": [int(height), int(width)], "counts": str(text)}:
                runs = decompress(text.encode("ascii"))
            case {"size": [int(height), int(width)], "counts": bytes(text)}:
                runs = decompress(text)
            case {"size": [int(height), int(width)], "counts": [*plain]}:
                runs = np.array(plain, dtype=np.int64)
            case _:
                raise ValueError("RLE needs a size, [height, width], and counts, a string or a list")
        _check(runs, height * width)
        packed, _ = compress(runs, np.zeros(1, np.int64), np.array([len(runs)]))
        return cls((height, width), packed, int(runs[1::2].sum()))


def encode(bitmap: NDArray[np.generic]) -> Rle:
    """Encode a bitmap [H, W]; whatever is not zero is foreground.

    Byte-identical to `pycocotools.mask.encode` of the same bitmap in 0 and 1.
    """
    if bitmap.ndim != 2:
        raise ValueError(f"a bitmap has two axes, this has {bitmap.ndim}")
    height, width = bitmap.shape
    # Column-major, as COCO counts.
    flat = (bitmap != 0).T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    return from_changes(changes, range(1), (height, width))[0]


def decode(rle: Rle) -> NDArray[np.uint8]:
    """The bitmap [H, W] of 0 and 1, in Fortran order like pycocotools' own.

    Raises ValueError where the counts are not those of a bitmap of that size.
    """
    runs = decompress(rle.counts)
    _check(runs, rle.size[0] * rle.size[1])
    return _paint(runs, rle.size).view(np.uint8)


def from_changes(changes: NDArray[np.int64], masks: range, size: tuple[int, int]) -> list[Rle]:
    """Encode masks of one size from the places where they turn from background to foreground or back.

    Args:
        changes: [K] ascending; pixel p of mask m in column-major order is number m * (H * W + 1) + p. A place
            named twice is no change. p may be H * W, one past the last pixel: no run follows what ends there.
        masks: the numbers of the masks that the changes belong to.
        size: (height, width) of the masks.
    """
    area = size[0] * size[1]
    # Number of each mask's first pixel.
    first = np.arange(masks.start, masks.stop, dtype=np.int64) * (area + 1)
    changes = drop_pairs(changes)
    closing = np.searchsorted(changes, first + area)
    closing = closing[np.append(changes, -1)[closing] == (first + area)]
    if len(closing):
        changes = np.delete(changes, closing)

    # With a post before each mask's first pixel and one behind its last, runs are the gaps between posts.
    begin = np.searchsorted(changes, first) + 2 * np.arange(len(masks))  # [masks] each mask's first post
    end = np.append(begin[1:], len(changes) + 2 * len(masks)) - 1  # [masks] and its last one
    posts = np.empty(len(changes) + 2 * len(masks), dtype=np.int64)
    inner = np.ones(len(posts), dtype=np.bool_)
    inner[begin] = inner[end] = False
    posts[inner] = changes
    posts[begin] = first
    posts[end] = first + area
    # One too many between masks, which `compress` skips.
    runs = posts[1:] - posts[:-1]

    text, offsets = compress(runs, begin, end)
    return [
        Rle(size, text[offsets[start] : offsets[stop]], int(np.add.reduce(runs[start + 1 : stop : 2])))
        for start, stop in zip(begin.tolist(), end.tolist(), strict=True)
    ]


def fill(changes: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The bitmap [H, W], in Fortran order, of one mask's changes; they are numbered from 0."""
    return _paint(np.diff(drop_pairs(changes), prepend=0, append=size[0] * size[1]), size)


def foreground(rle: Rle) -> NDArray[np.int64]:
    """Numbers of the mask's pixels in column-major order, ascending: work and memory grow with its area.

    Raises ValueError as `decode`.
    """
    runs = decompress(rle.counts)
    _check(runs, rle.size[0] * rle.size[1])
    first, length = np.cumsum(runs)[:-1:2], runs[1::2]
    before = np.cumsum(length) - length
    pixels: NDArray[np.int64] = np.arange(int(length.sum())) + np.repeat(first - before, length)
    return pixels


def _paint(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    foreground = np.arange(len(runs)) & 1 == 1
    return np.repeat(foreground, runs).reshape(size[::-1]).T


def drop_pairs(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep one of each number that occurs an odd number of times in an ascending array."""
    # Few: where outlines touch a sample's row or a pixel's edge.
    same = np.flatnonzero(changes[1:] == changes[:-1])
    if not len(same):
        return changes
    last = np.append(same[1:] != same[:-1] + 1, True)
    start = same[np.append(True, last[:-1])]
    times = same[last] + 2 - start
    kept: NDArray[np.int64] = np.delete(changes, np.concatenate([same, same[last][times % 2 == 0] + 1]))
    return kept


def compress(
    runs: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[bytes, NDArray[np.int64]]:
    """Several masks' runs as one string, and where in it each run starts: offsets [K + 1].

    Args:
        runs: [K] lengths; those of mask m are runs[begin[m]:end[m]], and one run between two masks is skipped.
        begin: [N].
        end: [N].
    """
    values = runs.copy()
    values[2:] -= runs[:-2]
    # The first three of a mask stand for themselves.
    raw = (begin[:, None] + np.arange(3)).reshape(-1)
    raw = raw[raw < np.repeat(end, 3)]
    values[raw] = runs[raw]
    values[end[:-1]] = 0

    # A value takes one signed group of five bits, from 16 on two, from 16 * 32 on three: few take many.
    magnitude = values ^ (values >> 63)
    length = np.ones(len(runs), dtype=np.int64)
    # The values with a second group, a third, …
    longer = []
    index = np.flatnonzero(magnitude >= 16)
    while len(index):
        longer.append(index)
        length[index] += 1
        index = index[magnitude[index] >= 16 << 5 * len(longer)]
    length[end[:-1]] = 0
    offsets = np.zeros(len(runs) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])

    groups = (values & 31) + 48
    text = np.empty(int(offsets[-1]) + 1, dtype=np.uint8)
    # A skipped run writes where its successor does, before it.
    text[offsets[:-1]] = groups
    for place, index in enumerate(longer):
        at = offsets[index] + place
        # There is more.
        text[at] += 32
        text[at + 1] = (values[index] >> 5 * (place + 1) & 31) + 48
    return text[:-1].tobytes(), offsets


def decompress(text: bytes) -> NDArray[np.int64]:
    """The runs [K] of one mask. Raises ValueError where the string is not one."""
    groups = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("not a string of COCO RLE")
    stop = np.flatnonzero(groups < 32)
    start = np.concatenate([[0], stop[:-1] + 1])
    length = stop - start + 1
    # A count has 32 bits, so its difference to another has a sign more: seven groups.
    if length.max() > 7:
        raise ValueError("a COCO run length of more than 32 bits")
    place = np.arange(len(groups)) - np.repeat(start, length)
    runs = np.add.reduceat((groups & 31) << (5 * place), start)
    # The top bit is the sign.
    runs -= (groups[stop] >> 4 & 1) << (5 * length)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check(runs: NDArray[np.int64], area: int) -> None:
    # Each on its own first: huge ones could add up to the right number modulo 2^64.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > area or int(runs.sum()) != area:
        raise ValueError(f"the runs of the RLE do not add up to the mask's {area} pixels")
