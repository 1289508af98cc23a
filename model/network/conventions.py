"""What frameworks compute differently around the same network, as plain values. The defaults are torchvision's.

None of them raises an error when it is wrong, and each ruins answers: with the weights of `shapes`, RoIAlign's half
pixel alone costs 22 points of mask AP (docs/importing.md has the table).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from model.instances import MOST_INSTANCES

if TYPE_CHECKING:
    from collections.abc import Sequence

RESIZES = ("torchvision", "detectron2", "mmdetection")
LEVEL_RULES = ("torchvision", "detectron2", "mmdetection")
PASTES = ("torchvision", "detectron2")
# What scores of keypoints are, and from where on pictures show one.
KEYPOINT_SCORES = {"logit": 2.0, "probability": 0.05}
# Conventions that are arguments of torchvision's own modules.
TORCHVISION_NUMBERS = (
    "pixel_mean", "pixel_std", "anchor_levels", "candidates", "rpn_nms", "score_threshold", "nms", "detections",
    "paste", "keypoint_scores",
)  # fmt: skip
# Of RoIAlign, per bin and axis; adaptive sampling has no such limit.
MOST_SAMPLES = 8


class ConventionError(ValueError):
    """The description names a convention that there is not."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """How a framework computes what a Mask R-CNN leaves open."""

    # The image: resized by the rule of a framework, normalised, and padded to multiples of `divisor`.
    # RGB, of values 0 to 255.
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    # Bilinear in floats; on bytes: "detectron2", "mmdetection".
    resize: str = "torchvision"
    # 1: not padded.
    divisor: int = 32

    # Proposals.
    # Sizes at each level, where `anchor_sizes` does not do.
    anchor_levels: tuple[tuple[float, ...], ...] = ()
    # A cell's anchors: all sizes of the first ratio first, or "size": all ratios of a size.
    anchor_order: str = "ratio"
    # Of the first anchors' centre from the image's corner, in strides.
    anchor_offset: float = 0.0
    # To whole pixels.
    anchor_rounding: bool = True
    # Input size // map size, or "level": 4, 8, 16, 32, 64.
    anchor_strides: str = "grid"
    # Of the first map; 16 where it is the only one.
    first_stride: int = 4
    # Anchors of each level that go into NMS; 0: as many as proposals are kept.
    candidates: int = 0
    # IoU.
    rpn_nms: float = 0.7
    # Of a proposal, pixels of the input.
    rpn_min_size: float = 1e-3
    # Anchors are ranked by probabilities, of which the highest are all 1, not by logits.
    rpn_sigmoid: bool = False
    # A delta shrinks a box no further than it could enlarge one.
    clamp_both: bool = False

    # RoIAlign: bins per side, samples per bin and axis (0: one for each cell that the bin spans).
    # By which a box's pyramid level is rounded.
    level_rule: str = "torchvision"
    box_bins: int = 7
    box_samples: int = 2
    # Cells' centres lie half a cell from their corners.
    box_aligned: bool = False
    mask_bins: int = 14
    mask_samples: int = 2
    mask_aligned: bool = False
    keypoint_bins: int = 14
    keypoint_samples: int = 2
    keypoint_aligned: bool = False

    # Detections.
    score_threshold: float = 0.05
    # IoU, within a category.
    nms: float = 0.5
    # Per image.
    detections: int = 100
    # Pixels of the input; smaller boxes are dropped before NMS.
    box_min_size: float = 1e-2
    # Boxes without area in the image, after all else.
    drop_empty: bool = False
    # Masks on whole pixels, > 0.5, or "detectron2": sampled at pixels' centres, >= 0.5.
    paste: str = "torchvision"
    # A keypoint's: its heatmap's value, or "probability": that of the place, as Detectron2 estimates it.
    keypoint_scores: str = "logit"

    def validate(self) -> None:
        """Raise ConventionError for values that are none."""
        for name, allowed in (
            ("resize", RESIZES),
            ("level_rule", LEVEL_RULES),
            ("paste", PASTES),
            ("keypoint_scores", tuple(KEYPOINT_SCORES)),
            ("anchor_order", ("ratio", "size")),
            ("anchor_strides", ("grid", "level")),
        ):
            if getattr(self, name) not in allowed:
                raise ConventionError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ConventionError(f"{name} is three numbers, not {values}")
        if min(self.pixel_std) <= 0:
            raise ConventionError(f"pixel_std is three numbers above 0, not {self.pixel_std}")
        sizes = [size for level in self.anchor_levels for size in level]
        if not all(self.anchor_levels) or not all(math.isfinite(size) and size > 0 for size in sizes):
            raise ConventionError(
                f"anchor sizes are numbers above 0, at least one a level: {self.anchor_levels}"
            )
        if len({len(level) for level in self.anchor_levels}) > 1:
            raise ConventionError(f"each level has as many anchor sizes: {self.anchor_levels}")
        bins = self.box_bins, self.mask_bins, self.keypoint_bins
        if min(bins) < 1 or max(bins) > 64:
            raise ConventionError(f"RoIAlign has 1 to 64 bins, not {', '.join(map(str, bins))}")
        samples = self.box_samples, self.mask_samples, self.keypoint_samples
        if not all(0 <= count <= MOST_SAMPLES for count in samples):
            raise ConventionError(f"RoIAlign takes 0 to {MOST_SAMPLES} samples")
        if self.divisor not in (1, 32):
            raise ConventionError(f"the input is padded to multiples of 32 or 1, not of {self.divisor}")
        if self.first_stride not in (4, 16):
            raise ConventionError(f"the first map has a stride of 4 or 16, not of {self.first_stride}")
        if self.candidates < 0 or not 1 <= self.detections <= MOST_INSTANCES:
            raise ConventionError(f"candidates are 0 or more, detections 1 to {MOST_INSTANCES}")
        for name in ("rpn_nms", "nms", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConventionError(f"{name} is from 0 to 1, not {getattr(self, name)}")
        for name in ("rpn_min_size", "box_min_size", "anchor_offset"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConventionError(f"{name} is a number from 0 up, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """What differs from torchvision, as plain values."""
        return {name: value for name, value in asdict(self).items() if value != getattr(TORCHVISION, name)}

    @classmethod
    def from_dict(cls, values: Any) -> Conventions:
        """The inverse of `to_dict`. Raises ConventionError on unknown names and values of the wrong type."""
        if not isinstance(values, dict):
            raise ConventionError(f"conventions are a table of names and values, not {values!r:.60}")
        known = {f.name: getattr(TORCHVISION, f.name) for f in fields(cls)}
        unknown = sorted(str(name) for name in set(values) - set(known))
        if unknown:
            raise ConventionError(f"unknown conventions: {', '.join(unknown)}")
        examples = known | {"anchor_levels": ((0.0,),)}
        typed = {}
        for name, value in values.items():
            try:
                typed[name] = coerce(value, examples[name])
            except TypeError as error:
                raise ConventionError(f"{name}: {error}") from None
        made = cls(**typed)
        made.validate()
        return made


def coerce(value: Any, example: Any) -> Any:
    """A value from JSON in the example's type: JSON has no tuples, and may write 1.0 as 1. Raises TypeError.

    The first item of a tuple is the example of all items; those of an empty one are integers.
    """
    if isinstance(example, tuple) and isinstance(value, list | tuple):
        return tuple(coerce(item, example[0] if example else 0) for item in value)
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if type(value) is not type(example):
        raise TypeError(f"{value!r:.60} is no {type(example).__name__}")
    return value


def of_one(values: Sequence[float]) -> list[float]:
    """Values of 0 to 255 as parts of one, as torchvision states them: 0.224, not 0.22399999999999998."""
    return [round(value / 255, 15) for value in values]


TORCHVISION = Conventions()
