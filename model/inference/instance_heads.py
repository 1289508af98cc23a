"""Masks and keypoints of the instances that were found in a batch, where the caller wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.features import FeatureMaps
    from model.inference.keypoint_head import KeypointHead, Keypoints
    from model.inference.roi_heads import Detections, MaskHead
    from model.instances import Options


def masks_of_all(
    head: MaskHead | None,
    maps: FeatureMaps,
    found: Sequence[Detections],
    options: Sequence[Options],
    *,
    side: int,
    pad: bool = False,
) -> list[Tensor | None]:
    """For each image [N, side, side] float32 probabilities of the instances' own classes on the CPU, where wanted.

    Args:
        head: the model's, if it has one.
        maps: of the batch.
        found: in each image, on the device.
        options: of each image.
        side: of a mask's map.
        pad: run some numbers of boxes and no more, for each of which a GPU's libraries choose their kernels again.
    """
    if head is None:
        return [None] * len(found)
    boxes = [b if o.masks else b[:0] for (b, _, _), o in zip(found, options, strict=True)]
    counts = [len(b) for b in boxes]
    labels = torch.cat([n[:count] for (_, _, n), count in zip(found, counts, strict=True)])
    grids = torch.zeros((0, side, side))
    if count := sum(counts):
        if pad:
            spare = _pad(boxes, count)
            labels = functional.pad(labels, (0, spare))
        grids = head(maps, boxes, labels)[:count].cpu()
    parts = torch.split(grids, counts)
    return [grid if o.masks else None for grid, o in zip(parts, options, strict=True)]


def keypoints_of_all(
    head: KeypointHead | None,
    maps: FeatureMaps,
    found: Sequence[Detections],
    options: Sequence[Options],
    *,
    pad: bool = False,
) -> list[Keypoints | None]:
    """For each image the places [N, K, 2] in input pixels and scores [N, K] on the CPU, where wanted.

    Args:
        head: the model's, if it has one.
        maps: of the batch.
        found: in each image, on the device.
        options: of each image.
        pad: as for `masks_of_all`.
    """
    if head is None:
        return [None] * len(found)
    boxes = [b if o.keypoints else b[:0] for (b, _, _), o in zip(found, options, strict=True)]
    counts = [len(b) for b in boxes]
    count = sum(counts)
    places, scores = torch.zeros((0, head.count, 2)), torch.zeros((0, head.count))
    if count:
        if pad:
            _pad(boxes, count)
        places, scores = head(maps, boxes, count)
    parts = zip(torch.split(places, counts), torch.split(scores, counts), options, strict=True)
    return [(place, score) if o.keypoints else None for place, score, o in parts]


def _pad(boxes: list[Tensor], count: int) -> int:
    """Give the last image boxes of no size, up to a number of boxes that is run often; returns how many."""
    spare = _round_up(count) - count
    boxes[-1] = functional.pad(boxes[-1], (0, 0, 0, spare))
    return spare


def _round_up(count: int) -> int:
    """The next power of two up to 64, then the next multiple of 64."""
    return int(2 ** (count - 1).bit_length()) if count <= 64 else -(-count // 64) * 64
