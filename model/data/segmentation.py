"""One COCO annotation's segmentation, polygons or either kind of RLE: made uniform or refused, and its mask."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from model.data.fields import quote, to_count, to_number
from model.images.formats import MAX_SIDE
from model.masks.rle import Rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from model.data.fields import Box

# Of a polygon: three corners.
LEAST_NUMBERS = 6
# Numbers that are two corners, or a corner and two sides.
RECTANGLE = 4

_NUMBERS = {int, float}

Segmentation = list[list[float]] | dict[str, Any]


class Fault(NamedTuple):
    """Why something cannot be used: a kind to count by, and what exactly is wrong."""

    kind: str
    detail: str


UNREADABLE = "unreadable segmentation"
OTHER_SIZE = "mask of another size"


def read_segmentation(value: Any, size: tuple[int, int], box: Box | None) -> Segmentation | Fault | None:
    """A segmentation as COCO defines it: polygons [[x1, y1, …], …] or compressed RLE; None if there is none.

    What labelling tools write besides is taken where it has one meaning: numbers as text, a polygon that is not in a
    list, corners as pairs or as objects, a single RLE in a list, rectangles by two corners that agree with the box, and
    any of these as JSON text.

    Args:
        value: what the file has.
        size: (height, width) of the image.
        box: the annotation's own, x, y, width, height, where it has a usable one.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if not value:
        return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        value = value[0]
    if isinstance(value, dict):
        return _read_rle(value, size)
    if not isinstance(value, list):
        return Fault(UNREADABLE, f"segmentation is {quote(value)}, but polygons or RLE are needed")
    polygons: list[list[float]] = []
    for polygon in _polygons(value):
        read = _read_polygon(polygon)
        if isinstance(read, Fault):
            return read
        if len(read) == RECTANGLE:
            read = _rectangle(read, box)
        if len(read) >= LEAST_NUMBERS:
            polygons.append(read)
    return polygons or None


def _from_text(text: str) -> Any:
    """What a text that holds JSON stands for, as tables of values have it; other texts as they are."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _polygons(value: list[Any]) -> list[Any]:
    """The polygons of a segmentation, which may be one that is not in a list of its own."""
    single = not isinstance(value[0], list | dict) or _is_point(value[0])
    return [value] if single else value


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(v, list | dict) for v in value)


def _read_polygon(polygon: Any) -> list[float] | Fault:
    if not isinstance(polygon, list):
        return Fault(
            UNREADABLE, f"segmentation has {quote(polygon)} where a polygon, a list of numbers, is needed"
        )
    if _is_plain(polygon):
        return list(map(float, polygon))
    if polygon and all(map(_is_point, polygon)):
        polygon = list(chain.from_iterable((p["x"], p["y"]) if isinstance(p, dict) else p for p in polygon))
    numbers = [v if type(v) is float else to_number(v) for v in polygon]
    for number, given in zip(numbers, polygon, strict=True):
        if number is None or number != number or abs(number) == float("inf"):  # noqa: PLR0124 - NaN
            return Fault(
                UNREADABLE, f"segmentation has a polygon with {quote(given)}, which is not a finite number"
            )
        # pycocotools walks along each edge in steps of a fifth of a pixel: far corners take all memory.
        if abs(number) > MAX_SIDE:
            return Fault(
                UNREADABLE, f"segmentation has a polygon with a corner {abs(number):.3g} pixels away"
            )
    if len(numbers) % 2:
        return Fault(UNREADABLE, f"segmentation has a polygon of {len(numbers)} numbers, which are no pairs")
    return [v for v in numbers if v is not None]


def _is_plain(polygon: list[Any]) -> bool:
    """Whether a polygon needs no other look, as nearly all do not: five times as fast as one number after the other."""
    if not polygon or len(polygon) % 2 or not set(map(type, polygon)) <= _NUMBERS:
        return False
    return max(polygon) <= MAX_SIDE and min(polygon) >= -MAX_SIDE and math.isfinite(sum(polygon))


def _rectangle(numbers: Sequence[float], box: Box | None) -> list[float]:
    """Four numbers as the rectangle that the box says they are, by two corners or by corner and sides; else none."""
    if box is None:
        return []
    x, y, width, height = box
    a, b, c, d = numbers
    corners = (min(a, c), min(b, d), max(a, c), max(b, d))
    if not any(
        all(abs(ours - theirs) <= 1 for ours, theirs in zip(found, box, strict=True))
        for found in (
            (corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]),
            tuple(numbers),
        )
    ):
        return []
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _read_rle(value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any] | Fault:
    own = value.get("size", list(size))
    sides = [to_count(v) for v in own] if isinstance(own, list) and len(own) == 2 else [None]
    if any(side is None or side > MAX_SIDE for side in sides):
        return Fault(UNREADABLE, f"segmentation has the size {quote(own)}, but [height, width] is needed")
    own = [side for side in sides if side is not None]
    counts = value.get("counts")
    if isinstance(counts, list):
        numbers = [v if type(v) is int else _whole(v) for v in counts]
        if any(v is None for v in numbers):
            bad = counts[numbers.index(None)]
            return Fault(
                UNREADABLE, f"segmentation has {quote(bad)} among its counts, which is no run length"
            )
        counts = numbers
    elif not isinstance(counts, str):
        return Fault(
            UNREADABLE,
            f"segmentation has {quote(counts)} for counts, but the text or the list of an RLE is needed",
        )
    elif not counts.isascii():
        return Fault(
            UNREADABLE, "segmentation has counts with other than ASCII characters, which an RLE does not have"
        )
    if tuple(own) != size:
        turned = "; its size is [width, height] where [height, width] is needed" * (tuple(own[::-1]) == size)
        return Fault(
            OTHER_SIZE,
            f"segmentation is a mask of {own[1]}×{own[0]} pixels in an image of {size[1]}×{size[0]}{turned}",
        )
    try:
        return dict(Rle.from_coco({"size": own, "counts": counts}).to_coco())
    except (ValueError, TypeError, OverflowError):
        return Fault(
            UNREADABLE,
            f"segmentation has counts whose runs do not add up to the image's {size[0] * size[1]} pixels",
        )


def _whole(value: Any) -> int | None:
    """A count of pixels, written as a number or as text."""
    number = to_number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def to_rle(segmentation: Segmentation | None, size: tuple[int, int]) -> dict[str, Any] | None:
    """The mask as compressed COCO RLE for pycocotools; None if there is none.

    segmentation: as `read_segmentation` gives it. size: (height, width) of the image.
    """
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return segmentation
    rle: dict[str, Any] = coco.merge(coco.frPyObjects(segmentation, *size))
    return rle


def to_bitmap(segmentation: Segmentation | None, size: tuple[int, int]) -> np.ndarray | None:
    """[H, W] uint8 of 0 and 1; None if there is no mask. Arguments as for `to_rle`."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    rle = to_rle(segmentation, size)
    if rle is None:
        return None
    mask: np.ndarray = coco.decode(rle)
    return mask


def measure(segmentation: Segmentation | None, size: tuple[int, int]) -> tuple[int, Box] | None:
    """Pixels and box (x, y, width, height) of a mask, without its bitmap; None if there is no mask."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    rle = to_rle(segmentation, size)
    if rle is None:
        return None
    x, y, width, height = (float(v) for v in coco.toBbox(rle))
    return int(coco.area(rle)), (x, y, width, height)


def surely_visible(segmentation: Segmentation | None, size: tuple[int, int]) -> bool:
    """Whether a mask has pixels beyond doubt, seen from its corners: a polygon with area in the middle of the image."""
    if not isinstance(segmentation, list):
        return False
    for polygon in segmentation:
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < 0 or min(ys) < 0 or max(xs) > size[1] or max(ys) > size[0]:
            continue
        turns = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        if abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in turns)) > 2 * (
            max(xs) - min(xs) + max(ys) - min(ys) + 4
        ):
            return True
    return False
