"""What a segmentation is made of: the result type that everything downstream reads, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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

    def __len__(self) -> int:
        return int(self.scores.shape[0])
