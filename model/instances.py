"""What a segmentation is made of: the result type that everything downstream reads, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

from model.masks import paste

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from model.masks.paste import Crop
    from model.masks.polygons import Polygons
    from model.masks.rle import Rle
    from model.masks.runs import ColumnRuns

# In an image. Models are made for 100 by default, as COCO counts; crowded microscopy has several hundred.
MOST_INSTANCES = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller wants of one image; applied before the mask head, so that nothing is computed in vain."""

    # Instances score at least this.
    score_threshold: float = 0.5
    # The best-scoring ones are kept; None: as many as the model finds at most.
    max_instances: int | None = None
    # Category ids to keep; None keeps all.
    categories: frozenset[int] | None = None
    # False: boxes only, and the mask head is not run.
    masks: bool = True
    # False: the keypoint head is not run.
    keypoints: bool = True

    @property
    def limit(self) -> int:
        """How many instances are kept at most, of however many the model finds."""
        return MOST_INSTANCES if self.max_instances is None else self.max_instances


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances found in one image, in descending score. All tensors are on the CPU."""

    # (height, width) of the upright image, pixels.
    size: tuple[int, int]
    boxes: Tensor  # [N, 4] float32, xyxy, pixels of that image
    scores: Tensor  # [N] float32, 0 to 1
    labels: Tensor  # [N] int64, category ids as the model's `categories` number them
    probabilities: Tensor | None  # [N, 28, 28] float32, the mask head's for the instance's own category
    # The rule of model/masks/paste.py by which these become masks.
    pasting: str = "torchvision"
    # [N, K, 3] float32: x and y in pixels of that image, and 1. None where there are none or they were not asked for.
    keypoints: Tensor | None = None
    # [N, K] float32, as the model's `conventions.keypoint_scores` says.
    keypoint_scores: Tensor | None = None
    # The score from which on pictures show a keypoint.
    keypoints_from: float = 0.0
    # [N] the masks themselves, where tiles were merged; then there are no probabilities.
    runs: ColumnRuns | None = None

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @property
    def has_masks(self) -> bool:
        """Whether there is a mask for each."""
        return self.runs is not None or self.probabilities is not None

    def rles(self) -> list[Rle]:
        """The masks as COCO RLE. Raises ValueError where there are none."""
        if self.runs is not None:
            return self.runs.rles(self.size)
        return paste.paste(self._probabilities(), self.boxes, self.size, rule=self.pasting)

    def outlines(self) -> list[Polygons]:
        """The masks as COCO polygons. Raises ValueError where there are none."""
        if self.runs is not None:
            return self.runs.outlines()
        return paste.outlines(self._probabilities(), self.boxes, self.size, rule=self.pasting)

    def crops(self) -> Iterator[Crop]:
        """The masks as bitmaps of their boxes, one by one. Raises ValueError where there are none."""
        if self.runs is not None:
            return starmap(paste.Crop, self.runs.crops())
        return paste.crops(self._probabilities(), self.boxes, self.size, rule=self.pasting)

    def _probabilities(self) -> Tensor:
        if self.probabilities is None:
            raise ValueError("these instances have no masks")
        return self.probabilities
