"""Keypoints in label files: what categories call them, where they lie in objects, and what a mirrored image makes of
them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data import Keypoints
from model.data.fields import quote, to_count, to_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.data import Sample


def read_names(categories: Sequence[Any]) -> tuple[Keypoints | None, str]:
    """What the categories of a COCO document call keypoints, and which of them are joined, if any has some.

    The text says what is left out and why: lines that a drawing would join them by, or the keypoints where they cannot
    be learned. A network has one list of them for all categories.
    """
    found: dict[str, Keypoints] = {}
    unusable = ""
    for place, category in enumerate(categories):
        names = category.get("keypoints") if isinstance(category, dict) else None
        if not names:
            continue
        where = f"keypoints of categories[{place}]"
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            return None, f"{where}, which are {quote(names)}, not a list of names"
        if len(set(names)) < len(names):
            return None, f"{where}, of which two have the same name"
        skeleton = _skeleton(category.get("skeleton") or [], len(names))
        if skeleton is None:
            unusable = unusable or (
                f"lines between the {where}, whose skeleton is not a list of pairs of numbers from 1 to {len(names)}"
            )
        found[str(category.get("name"))] = Keypoints(tuple(names), skeleton or ())
    if len({known.names for known in found.values()}) > 1:
        return None, f"keypoints, of which {', '.join(sorted(found))} have different ones"
    return next(iter(found.values()), None), unusable


def _skeleton(pairs: Any, count: int) -> tuple[tuple[int, int], ...] | None:
    """Pairs of places from 0; COCO counts from 1. None for what is no list of them."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    ends = [to_count(end) for pair in pairs for end in pair]
    whole = [end - 1 for end in ends if end is not None and end <= count]
    return tuple(zip(whole[::2], whole[1::2], strict=True)) if len(whole) == len(ends) else None


def names_to_coco(keypoints: Keypoints | None) -> dict[str, Any]:
    """The fields of a COCO category; nothing where there are no keypoints."""
    if keypoints is None:
        return {}
    joined = [[first + 1, second + 1] for first, second in keypoints.skeleton]
    return {"keypoints": list(keypoints.names), "skeleton": joined}


def read_points(given: Any, count: int) -> NDArray[np.float32] | None:
    """One object's keypoints [count, 3] from COCO's list: x, y, and 0 (not labelled), 1 (hidden) or 2 (visible).

    Zeros where the object has none; None for what is no such list.
    """
    if given is None or given == []:
        return np.zeros((count, 3), np.float32)
    if not isinstance(given, list) or len(given) != 3 * count:
        return None
    numbers = [to_number(value) for value in given]
    if any(number is None or abs(number) >= 1e9 for number in numbers):
        return None
    points = np.array(numbers, np.float32).reshape(count, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        return None
    points[points[:, 2] == 0] = 0
    return points


def to_coco(points: NDArray[np.float32]) -> dict[str, Any]:
    """The fields of a COCO annotation. points: [K, 3] of one object."""
    numbers = [round(float(value), 2) for value in points.reshape(-1)]
    numbers[2::3] = [int(v) for v in numbers[2::3]]
    return {"keypoints": numbers, "num_keypoints": int((points[:, 2] > 0).sum())}


def mirror(sample: Sample) -> Sample:
    """The sample with its keypoints mirrored: what is left becomes what is right. Its width is that of its pixels."""
    if sample.keypoints is None or sample.named is None:
        return sample
    points = sample.keypoints[:, list(sample.named.flip_indices())]
    points[..., 0] = sample.pixels.shape[1] - points[..., 0]
    return replace(sample, keypoints=_without_unlabelled(points))


def turn(sample: Sample, quarters: int) -> Sample:
    """The sample with its keypoints turned counterclockwise; its pixels are not turned yet."""
    if sample.keypoints is None:
        return sample
    points = sample.keypoints
    for turned in range(quarters):
        across = sample.pixels.shape[1 - turned % 2]
        points = np.stack([points[..., 1], across - points[..., 0], points[..., 2]], 2)
    return replace(sample, keypoints=_without_unlabelled(points))


def scale(
    sample: Sample, factors: tuple[float, float], corner: tuple[int, int], size: tuple[int, int]
) -> Sample:
    """The sample with its keypoints on a canvas; those outside it are no longer labelled.

    Args:
        sample: with its pixels as they were.
        factors: across and down.
        corner: (left, top) of the resized image on the canvas, pixels.
        size: (width, height) of the canvas, pixels.
    """
    if sample.keypoints is None:
        return sample
    points = sample.keypoints.copy()
    points[..., :2] = points[..., :2] * np.array(factors) + np.array(corner)
    inside = ((points[..., :2] >= 0) & (points[..., :2] < size)).all(-1)
    points[~inside] = 0
    return replace(sample, keypoints=_without_unlabelled(points))


def _without_unlabelled(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zeros where nothing is labelled, as COCO has them."""
    points[points[..., 2] == 0] = 0
    return points
