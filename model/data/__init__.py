"""Datasets to train and evaluate on: synthetic scenes, and folders in COCO's format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from model.data.masks import InstanceMasks


@dataclass(frozen=True, slots=True)
class Category:
    """One class of object. `id` is what annotations and answers carry; it need not count from 1 without gaps."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Keypoints:
    """What the keypoints of an object are called, in their order, and which pairs a drawing joins."""

    names: tuple[str, ...]
    # Pairs of places in `names`, from 0.
    skeleton: tuple[tuple[int, int], ...] = ()

    def flip_indices(self) -> tuple[int, ...]:
        """For each keypoint the place of the one that it becomes in a mirrored image: "left_knee" and "right_knee".

        One whose counterpart is missing, or has another counterpart, keeps its place.
        """
        places = {name: place for place, name in enumerate(self.names)}
        others = [_find_other_side(name, places) for name in self.names]
        return tuple(other if others[other] == place else place for place, other in enumerate(others))


# Exchanged in names of keypoints.
_SIDES = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_SIDES |= {other: side for side, other in _SIDES.items()}
# As words of their own, as in "left_eye", "leftEye", "eyeLeft" and "LEFT_EYE", but not in "bright_left_lamp".
_WORDS = re.compile(r"((?<![A-Za-z])(left|right)|(?<![A-Z])(Left|Right|LEFT|RIGHT))(?![a-z])")
# Anywhere, as in "lefteye".
_PARTS = re.compile("|".join(_SIDES))


def _find_other_side(name: str, places: dict[str, int]) -> int:
    """The place of a keypoint's counterpart, or its own. places: of all keypoints, by name."""
    for pattern in (_WORDS, _PARTS):
        other = pattern.sub(lambda side: _SIDES[side[0]], name)
        if other != name and other in places:
            return places[other]
    return places[name]


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    image_id: int
    pixels: np.ndarray  # [H, W, 3] uint8, RGB
    boxes: np.ndarray  # [N, 4] float32, xyxy, pixels
    labels: np.ndarray  # [N] int64, category ids
    masks: np.ndarray | InstanceMasks  # [N, H, W] uint8, 0 or 1: what is visible of each object
    visibility: np.ndarray | None = None  # [N] float, the visible part of each object, where it is known
    # [N, K, 3] float32: x, y in pixels and 0 (not labelled), 1 (hidden) or 2 (visible), where there are any.
    keypoints: np.ndarray | None = None
    # What they are.
    named: Keypoints | None = None


def keypoints_of(dataset: Dataset) -> Keypoints | None:
    """What the keypoints of a dataset's objects are, from its attribute `keypoints`; None if they have none."""
    found: Keypoints | None = getattr(dataset, "keypoints", None)
    return found


class DatasetError(Exception):
    """The dataset cannot be used; the message names the file and says what is wrong with it."""


class Dataset(Protocol):
    """What the trainer and the evaluation need of a dataset. `keypoints_of` says what one may have besides."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes that its labels refer to."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, without rendering or decoding it."""

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """The sample's objects as COCO annotations, to be compared with; `id` is not filled in."""
