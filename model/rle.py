"""COCO run lengths: a bitmap as the byte string that pycocotools reads and writes, without pycocotools.

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
    """One mask as compressed COCO run lengths."""

    size: tuple[int, int]  # (height, width), pixels
    counts: bytes  # ASCII 48 to 111
    area: int  # foreground pixels

    def to_coco(self) -> CocoRle:
        """The mask as a COCO results record carries it in JSON."""
        return {"size": list(self.size), "counts": self.counts.decode("ascii")}

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, object]) -> Rle:
        """Read a COCO `segmentation` with run lengths: compressed (str or bytes) or a plain list of counts.

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
                raise ValueError("run lengths need a size, [height, width], and counts, a string or a list")
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
    flat = (bitmap != 0).T.reshape(-1)  # column-major, as COCO counts
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    return from_changes(changes, 1, (height, width))[0]


def decode(rle: Rle) -> NDArray[np.uint8]:
    """The bitmap [H, W] of 0 and 1, in Fortran order like pycocotools' own.

    Raises ValueError where the counts are not those of a bitmap of that size.
    """
    height, width = rle.size
    runs = decompress(rle.counts)
    _check(runs, height * width)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def from_changes(changes: NDArray[np.int64], masks: int, size: tuple[int, int]) -> list[Rle]:
    """Encode several masks of one size from the places where they turn from background to foreground or back.

    changes: [K] ascending; pixel p of mask m in column-major order is number m * (H * W + 1) + p. A place
    named twice is no change. p may be H * W, one past the last pixel: no run follows what ends there.
    """
    if masks == 0:
        return []
    area = size[0] * size[1]
    stride = area + 1
    changes = _odd(changes)
    first = np.arange(masks, dtype=np.int64) * stride  # number of each mask's first pixel
    last = np.searchsorted(changes, first + area)
    if len(changes):
        closing = last[(last < len(changes)) & (changes[np.minimum(last, len(changes) - 1)] == first + area)]
        changes = np.delete(changes, closing)

    # With a post before each mask's first pixel and one behind its last, runs are the gaps between posts.
    begin = np.searchsorted(changes, first) + 2 * np.arange(masks)  # [masks] each mask's first post
    end = np.append(begin[1:], len(changes) + 2 * masks) - 1  # [masks] and its last one
    posts = np.empty(len(changes) + 2 * masks, dtype=np.int64)
    inner = np.ones(len(posts), dtype=np.bool_)
    inner[begin] = inner[end] = False
    posts[inner] = changes
    posts[begin] = first
    posts[end] = first + area
    runs = np.diff(posts)  # [K + 2 masks - 1] one too many between masks, which `compress` skips

    text, offsets = compress(runs, begin, end)
    foreground = _foreground(runs, begin, end, area)
    return [
        Rle(size, text[start:stop], pixels)
        for start, stop, pixels in zip(
            offsets[begin].tolist(), offsets[end].tolist(), foreground, strict=True
        )
    ]


def _odd(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep one of each number that occurs an odd number of times in an ascending array."""
    fresh = changes[1:] != changes[:-1]
    if fresh.all():
        return changes
    begin = np.concatenate([[0], np.flatnonzero(fresh) + 1])
    times = np.diff(begin, append=len(changes))
    kept: NDArray[np.int64] = changes[begin[times % 2 == 1]]
    return kept


def _foreground(
    runs: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64], area: int
) -> list[int]:
    """Foreground pixels of each mask: half of all, plus half of its surplus over the background."""
    signed = np.where(np.arange(len(runs)) & 1, runs, -runs)
    signed[end[:-1]] = 0
    surplus = np.add.reduceat(signed, begin) * np.where(begin & 1, -1, 1)
    pixels: list[int] = ((area + surplus) // 2).tolist()
    return pixels


def compress(
    runs: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[bytes, NDArray[np.int64]]:
    """Several masks' runs as one string, and where in it each run starts: offsets [K + 1].

    runs: [K]; those of mask m are runs[begin[m]:end[m]], what lies between masks is skipped.
    """
    values = runs.copy()
    values[2:] -= runs[:-2]
    raw = (begin[:, None] + np.arange(3)).reshape(-1)  # the first three of a mask stand for themselves
    raw = raw[raw < np.repeat(end, 3)]
    values[raw] = runs[raw]

    magnitude = values ^ (values >> 63)
    length = np.ones(
        len(runs), dtype=np.int64
    )  # signed groups of five bits: 16, 16 · 32, … need one more each
    limit, highest = 16, int(magnitude.max(initial=0))
    while limit <= highest:
        length += magnitude >= limit
        limit *= 32
    length[end[:-1]] = 0
    offsets = np.zeros(len(runs) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])

    text = np.empty(int(offsets[-1]), dtype=np.uint8)
    index = np.flatnonzero(length)
    place = 0
    while len(index):
        more = length[index] > place + 1
        text[offsets[index] + place] = ((values[index] >> (5 * place)) & 31) + 32 * more + 48
        index = index[more]
        place += 1
    return text.tobytes(), offsets


def decompress(text: bytes) -> NDArray[np.int64]:
    """The runs [K] of one mask. Raises ValueError where the string is not one."""
    groups = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("not a string of COCO run lengths")
    stop = np.flatnonzero(groups < 32)
    start = np.concatenate([[0], stop[:-1] + 1])
    length = stop - start + 1
    if length.max() > 7:  # a count has 32 bits, so its difference to another has a sign more: seven groups
        raise ValueError("a COCO run length of more than 32 bits")
    place = np.arange(len(groups)) - np.repeat(start, length)
    runs = np.add.reduceat((groups & 31) << (5 * place), start)
    runs -= (groups[stop] >> 4 & 1) << (5 * length)  # the top bit is the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check(runs: NDArray[np.int64], area: int) -> None:
    if runs.min(initial=0) < 0 or int(runs.sum()) != area:
        raise ValueError(f"the run lengths do not add up to the mask's {area} pixels")
