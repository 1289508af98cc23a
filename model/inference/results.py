"""Detections in pixels of the input → instances in pixels of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.inference.proposals import are_large, clip_boxes
from model.instances import Instances
from model.network.conventions import KEYPOINT_SCORES

if TYPE_CHECKING:
    from torch import Tensor

    from model.inference.keypoint_head import Keypoints
    from model.inference.roi_heads import Detections
    from model.network.conventions import Conventions

# Pixels: a box of any length at all.
ANY_LENGTH = 1e-30


def to_instances(
    detections: Detections,
    grid: Tensor | None,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    label_ids: Tensor,
    conventions: Conventions,
    *,
    keypoints: Keypoints | None = None,
) -> Instances:
    """What was found in one image.

    Args:
        detections: on the CPU.
        grid: [N, M, M] probabilities of the masks, if there are any.
        sizes: (height, width) of the image and of what it was resized to.
        label_ids: [classes] int64, the category id of each of the network's outputs.
        conventions: of the model.
        keypoints: of the instances in pixels of the input, if there are any.
    """
    boxes, scores, labels = detections
    shape, size = sizes
    upright = boxes * _scale(size, shape)
    places, certain = keypoints or (None, None)
    if places is not None:
        places = torch.cat([places * _scale(size, shape)[:2], torch.ones_like(places[..., :1])], 2)
    if conventions.drop_empty:
        upright = clip_boxes(upright, shape)
        real = are_large(upright, ANY_LENGTH)
        upright, scores, labels = upright[real], scores[real], labels[real]
        grid, places, certain = (None if x is None else x[real] for x in (grid, places, certain))
    return Instances(
        shape,
        upright,
        scores,
        label_ids[labels],
        grid,
        conventions.paste,
        keypoints=places,
        keypoint_scores=certain,
        keypoints_from=KEYPOINT_SCORES[conventions.keypoint_scores],
    )


def _scale(before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """[4] float32: what the xyxy of boxes are multiplied with when an image of (height, width) is resized."""
    height, width = (torch.tensor(n, dtype=torch.float32) for n in after)
    ratios = width / before[1], height / before[0]
    return torch.stack([*ratios, *ratios])
