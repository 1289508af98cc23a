"""One COCO annotation's segmentation: what is wrong with it, and its mask (polygons, or either kind of RLE)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from model.images.header import MAX_SIDE
from model.masks.rle import Rle

if TYPE_CHECKING:
    import numpy as np

LEAST_NUMBERS = 6  # of a polygon: three corners


class Fault(NamedTuple):
    """Why something cannot be used: a kind to count by, and what exactly is wrong."""

    kind: str
    detail: str


UNREADABLE = "unreadable segmentation"
OTHER_SIZE = "mask of another size"


def fault(annotation: dict[str, Any], size: tuple[int, int]) -> Fault | None:
    """What is wrong with an annotation's segmentation; None if `to_rle` will read it.

    size: (height, width) of the image. An annotation without a segmentation, or with nothing in it, has no fault: it
    has no mask.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, size)
    if not isinstance(segmentation, list):
        return Fault(UNREADABLE, f"a list or an object is expected, not {type(segmentation).__name__}")
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return Fault(UNREADABLE, f"a polygon is a list of numbers, not {polygon!r:.40}")
        if not all(type(v) in (int, float) and math.isfinite(v) for v in polygon):
            return Fault(UNREADABLE, "a polygon with something else than finite numbers in it")
        if len(polygon) % 2:
            return Fault(UNREADABLE, f"a polygon of {len(polygon)} numbers, which are no pairs")
        # pycocotools walks along each edge in steps of a fifth of a pixel: far corners take all memory.
        if any(abs(v) > MAX_SIDE for v in polygon):
            return Fault(UNREADABLE, f"a polygon with a corner {max(map(abs, polygon)):.3g} pixels away")
    return None


def _rle_fault(segmentation: dict[str, Any], size: tuple[int, int]) -> Fault | None:
    try:
        rle = Rle.from_coco(segmentation)
    except (ValueError, TypeError, OverflowError) as error:
        return Fault(UNREADABLE, str(error))
    if rle.size != size:
        return Fault(
            OTHER_SIZE,
            f"a mask of {rle.size[1]}×{rle.size[0]} pixels in an image of {size[1]}×{size[0]}",
        )
    return None


def to_rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """The mask as compressed COCO run lengths for pycocotools; None if the annotation has none.

    Polygons of fewer than three corners are no area. The annotation must have no `fault`.
    """
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    segmentation = annotation.get("segmentation")
    rle: dict[str, Any]
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, *size)
            return rle
        return segmentation
    polygons = [p for p in segmentation or [] if len(p) >= LEAST_NUMBERS]
    if not polygons:
        return None
    rle = coco.merge(coco.frPyObjects(polygons, *size))
    return rle


def to_bitmap(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
    """[H, W] uint8 of 0 and 1; None if the annotation has no mask. The annotation must have no `fault`."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    rle = to_rle(annotation, size)
    if rle is None:
        return None
    mask: np.ndarray = coco.decode(rle)
    return mask
