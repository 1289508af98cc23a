"""Datasets to train and evaluate on: scenes that draw themselves, and folders in COCO's format."""

from __future__ import annotations

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

    def mirrored(self) -> tuple[int, ...]:
        """For each keypoint the place of the one that it becomes in a mirrored image: "left_knee" and "right_knee"."""
        places = {name: place for place, name in enumerate(self.names)}
        return tuple(places.get(_other_side(name), place) for place, name in enumerate(self.names))


def _other_side(name: str) -> str:
    for side, other in (("left", "right"), ("right", "left")):
        if side in name:
            return name.replace(side, other)
    return name


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
