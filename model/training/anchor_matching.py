"""Which object each anchor is matched with (Faster R-CNN, section 3.1.2), for images with hundreds of objects.

torchvision compares every object with every anchor, in tables of [objects, anchors, 2]: with 50 objects on 512 × 512
pixels that took a quarter of a training step on the CPU. Here anchors are taken in runs of a few rows of a level, and
compared only with the objects that reach into their rows; the matches are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Anchors in a run: its tables then fit into a core's cache.
RUN = 4096


class AnchorMatcher:
    """Takes the place of an RPN's `proposal_matcher` and, as a static method, of its `box_similarity`."""

    BELOW_LOW_THRESHOLD, BETWEEN_THRESHOLDS = -1, -2

    def __init__(self, low: float, high: float) -> None:
        """Below an IoU of `low` an anchor is background, from `high` on an object, and neither in between."""
        self.low, self.high = low, high

    @classmethod
    def install(cls, rpn: Any) -> None:
        """Replace the matcher of a torchvision RPN by one with the same thresholds."""
        matcher = rpn.proposal_matcher
        rpn.proposal_matcher = cls(matcher.low_threshold, matcher.high_threshold)
        rpn.box_similarity = cls.pair

    @staticmethod
    def pair(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """What torchvision hands on to the matcher, in place of a table of all IoUs."""
        return boxes, anchors

    def __call__(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """[A] int64: the number of each anchor's object, or one of the two constants.

        The anchors that an object overlaps most are matched too, however little that is; each of them with the object
        that it overlaps most itself.

        pair: the boxes of the objects [N, 4], at least one, and the anchors [A, 4], both xyxy in pixels.
        """
        boxes, anchors = pair
        best = boxes.new_zeros(len(anchors))  # [A] IoU
        matches = torch.zeros(len(anchors), dtype=torch.int64, device=boxes.device)  # [A]
        most = boxes.new_zeros(len(boxes))  # [N] the highest IoU of each object
        candidates = []
        for first in range(0, len(anchors), RUN):
            run = anchors[first : first + RUN]
            near = (boxes[:, :2] < run[:, 2:].amax(0)) & (boxes[:, 2:] > run[:, :2].amin(0))
            numbers = torch.where(near.all(1))[0]
            if not len(numbers):
                continue
            ious = _ious(boxes[numbers], run)  # [n, run]
            best[first : first + RUN], rows = ious.max(0)
            matches[first : first + RUN] = numbers[rows]
            highest = ious.amax(1)  # [n]
            most[numbers] = torch.maximum(most[numbers], highest)
            rows, columns = torch.where(ious == highest[:, None])
            candidates.append((numbers[rows], columns + first, highest[rows]))
        result = matches.clone()
        result[best < self.high] = self.BETWEEN_THRESHOLDS
        result[best < self.low] = self.BELOW_LOW_THRESHOLD
        for numbers, chosen, ious in candidates:
            kept = chosen[(ious == most[numbers]) & (ious > 0)]
            result[kept] = matches[kept]
        return result


def _ious(boxes: Tensor, anchors: Tensor) -> Tensor:
    """[n, a] as torchvision's `box_iou` rounds it, with a third of its tables."""
    left, top, right, bottom = anchors.T.contiguous()
    x0, y0, x1, y1 = boxes.T[:, :, None]
    width = torch.minimum(x1, right).sub_(torch.maximum(x0, left)).clamp_(min=0)
    height = torch.minimum(y1, bottom).sub_(torch.maximum(y0, top)).clamp_(min=0)
    shared = width.mul_(height)
    union = ((x1 - x0) * (y1 - y0)).add((right - left) * (bottom - top)).sub_(shared)
    return shared.div_(union)
