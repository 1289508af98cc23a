"""Proposals: the best anchors of every level, moved by their deltas, overlaps suppressed (Faster R-CNN, section 3).

The best of each level are picked before any box is computed, so that of 200,000 anchors at most a few thousand are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from model.kernels.nms import keep_mask, nms, overlap_matrix, top_after_nms
from model.kernels.openmp import one_thread
from model.network.conventions import TORCHVISION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.features import FeatureMaps
    from model.network.conventions import Conventions

# A delta makes a box at most e to this times as long, as in the Fast R-CNN code.
MAX_LOG_RATIO = math.log(1000 / 16)


def decode_boxes(
    deltas: Tensor, boxes: Tensor, weights: Sequence[float], *, clamp_both: bool = False
) -> Tensor:
    """Boxes moved by deltas (Fast R-CNN, "bounding-box regression"): [..., 4] xyxy float32.

    Args:
        deltas: [..., 4].
        boxes: [..., 4] xyxy.
        weights: what dx, dy, dw and dh were multiplied with in training.
        clamp_both: a box shrinks no further either than to the part that it may grow by.
    """
    lowest = -MAX_LOG_RATIO if clamp_both else None
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = deltas.float().unbind(-1)
    x0, y0, x1, y1 = boxes.unbind(-1)
    width, height = x1 - x0, y1 - y0
    x = dx / wx * width + (x0 + 0.5 * width)
    y = dy / wy * height + (y0 + 0.5 * height)
    with one_thread():
        half_width = 0.5 * ((dw / ww).clamp(lowest, MAX_LOG_RATIO).exp() * width)
        half_height = 0.5 * ((dh / wh).clamp(lowest, MAX_LOG_RATIO).exp() * height)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] cut to an image of (height, width) pixels."""
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def are_large(boxes: Tensor, min_side: float) -> Tensor:
    """[...] bool: which boxes [..., 4] are at least `min_side` pixels long both ways."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= min_side).all(-1)


class ProposalGenerator:
    """What a RegionProposalNetwork proposes, from the maps of model/inference/features.py."""

    def __init__(self, rpn: Any, device: torch.device, conventions: Conventions = TORCHVISION) -> None:
        """rpn: in evaluation mode. conventions: what its framework computes otherwise than torchvision."""
        cells = rpn.anchor_generator.cell_anchors
        self._cell_anchors = [cell.float().to(device) for cell in cells]  # [A, 4] each
        self._pre_nms_top_n, self._post_nms_top_n = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        self._iou_threshold, self._min_size = float(rpn.nms_thresh), float(rpn.min_size)
        self._box_weights = rpn.box_coder.weights
        self._clamp_both, self._anchor_offset = conventions.clamp_both, conventions.anchor_offset
        self._by_probability = conventions.rpn_sigmoid
        self._stride = conventions.first_stride
        self._by_level = conventions.anchor_strides == "level"
        if rpn.score_thresh > 0:
            raise TypeError("no way to prepare an RPN with a score threshold")

    def __call__(
        self, maps: FeatureMaps, padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """For each image [R, 4] float32 xyxy in input pixels, by falling objectness.

        Args:
            maps: of the batch.
            padded: (height, width) of the input.
            sizes: (height, width) of each image in it.
        """
        levels = [self._top_anchors(maps, level, padded) for level in range(len(maps.shapes))]
        return [self._nms([(s[n], b[n]) for s, b in levels], size) for n, size in enumerate(sizes)]

    def propose_fixed(
        self, maps: FeatureMaps, padded: tuple[int, int], limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same in tensors of a fixed size, without waiting for the device.

        Returns boxes [B, R, 4], which of them are proposals [B, R], and whether this is final [] (see kernels/nms.py).

        Args:
            maps: of the batch.
            padded: (height, width) of the input.
            limits: [B, 1, 4], where each image ends: its width, height, width, height in input pixels.
        """
        levels = [self._top_anchors(maps, level, padded) for level in range(len(maps.shapes))]
        batch, longest = len(limits), max(int(scores.shape[1]) for scores, _ in levels)
        valid = limits.new_zeros((batch, len(levels), longest), dtype=torch.bool)
        overlaps = limits.new_zeros((batch, len(levels), longest, longest), dtype=torch.bool)
        clipped_boxes = []
        for n, (level_scores, level_boxes) in enumerate(levels):
            count = int(level_scores.shape[1])
            boxes = torch.minimum(level_boxes.clamp(min=0), limits)
            clipped_boxes.append(boxes)
            valid[:, n, :count] = are_large(boxes, self._min_size)
            # A level at a time, to save memory.
            overlaps[:, n, :count, :count] = overlap_matrix(boxes, self._iou_threshold)
        keep, is_final = keep_mask(overlaps, valid)
        keep &= keep.cumsum(-1) <= self._post_nms_top_n
        kept = torch.cat([keep[:, n, : scores.shape[1]] for n, (scores, _) in enumerate(levels)], 1)
        scores = torch.cat([scores for scores, _ in levels], 1).masked_fill(~kept, -torch.inf)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self._post_nms_top_n]
        boxes = torch.cat(clipped_boxes, 1).gather(1, order[..., None].expand(-1, -1, 4))
        is_proposal = kept.gather(1, order)
        # The others may be NaN, of which RoIAlign would make rows that there are not.
        return torch.where(is_proposal[..., None], boxes, 0.0), is_proposal, is_final

    def _top_anchors(self, maps: FeatureMaps, level: int, padded: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Objectness [B, K] and boxes [B, K, 4] of a level's best anchors, best first."""
        logits, cell = maps.objectness[level], self._cell_anchors[level]
        height, width = maps.shapes[level]
        count = min(self._pre_nms_top_n, int(logits.shape[1]))
        # A stable sort, and no topk: many probabilities round to 1, and of equals the first counts as the best.
        if self._by_probability:
            with one_thread():
                probabilities = logits.sigmoid()
            scores, top = (x[:, :count] for x in probabilities.sort(dim=1, descending=True, stable=True))
        else:
            scores, top = logits.topk(count, dim=1)
        place = top // len(cell)
        # torchvision's strides are whole numbers even where a level's size is not a whole part of the input's.
        down, right = (
            (self._stride * 2**level,) * 2 if self._by_level else (padded[0] // height, padded[1] // width)
        )
        x, y = (place % width) * right, (place // width) * down
        anchors = cell[top % len(cell)] + torch.stack([x, y, x, y], -1)
        if self._anchor_offset:
            # Not from a list of numbers, for whose upload a GPU's host would wait.
            for first, stride in enumerate((right, down)):
                anchors[..., first::2] += self._anchor_offset * anchors.new_full((), stride)
        deltas = maps.deltas[level].gather(1, top[..., None].expand(-1, -1, 4))
        return scores, decode_boxes(deltas, anchors, self._box_weights, clamp_both=self._clamp_both)

    def _nms(self, levels: list[tuple[Tensor, Tensor]], size: tuple[int, int]) -> Tensor:
        boxes = clip_boxes(torch.cat([boxes for _, boxes in levels]), size)
        scores = torch.cat([scores for scores, _ in levels])
        level = torch.cat([scores.new_full((len(scores),), n) for n, (scores, _) in enumerate(levels)])
        valid = are_large(boxes, self._min_size)
        boxes, scores, level = boxes[valid], scores[valid], level[valid]

        def run_nms(rows: Tensor) -> Tensor:
            # One call for each level: together they would compare every box with those of other levels too.
            among = [(level[rows] == n).nonzero()[:, 0] for n in range(len(levels))]
            return torch.cat(
                [own[nms(boxes[rows[own]], scores[rows[own]], self._iou_threshold)] for own in among]
            )

        return boxes[top_after_nms(scores, self._post_nms_top_n, run_nms)]
