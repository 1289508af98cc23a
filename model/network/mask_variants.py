"""Mask branches of the paper's ablations: multinomial masks (Table 2b, softmax) and class-agnostic ones (section 4.2).

Their predictors look like the usual one from outside, a logit for each class, so that everything else stays as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    keypointrcnn_loss,
    project_masks_on_boxes,
)
from torchvision.ops import roi_align


class AgnosticPredictor(nn.Sequential):
    """One mask per box, whatever its class: [N, classes, M, M] logits, the same for every class."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(
            OrderedDict(MaskRCNNPredictor(channels, width, 1).named_children(), alike=_Alike(classes))
        )


class _Alike(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, logits: Tensor) -> Tensor:
        return logits.expand(-1, self.classes, -1, -1)


class SoftmaxPredictor(nn.Sequential):
    """Classes compete for every pixel, background (class 0) among them.

    [N, classes, M, M]: competing logits in training; in evaluation those whose sigmoid is the softmax.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(
            OrderedDict(MaskRCNNPredictor(channels, width, classes).named_children(), odds=_LogOdds())
        )


class _LogOdds(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits if self.training else torch.logit(logits.float().softmax(1), eps=1e-6)


class MaskLossHeads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's heads with another loss of masks, or other targets."""

    @classmethod
    def like(cls, heads: Any, *, softmax: bool, centred: bool) -> MaskLossHeads:
        """The same heads, from the same modules; training parameters are torchvision's defaults.

        Args:
            heads: torchvision's.
            softmax: the classes compete.
            centred: targets for masks that are pasted by Detectron2's rule.
        """
        made = cls(
            heads.box_roi_pool, heads.box_head, heads.box_predictor, 0.5, 0.5, 512, 0.25, None, heads.score_thresh,
            heads.nms_thresh, heads.detections_per_img, heads.mask_roi_pool, heads.mask_head, heads.mask_predictor,
            heads.keypoint_roi_pool, heads.keypoint_head, heads.keypoint_predictor,
        )  # fmt: skip
        made.loss = multinomial_loss if softmax else binary_loss
        made.targets = centred_targets if centred else project_masks_on_boxes
        made.train(heads.training)
        return made

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections and losses, as torchvision's RoIHeads gives them.

        Args:
            features: [B, C, H, W] of each level, by name.
            proposals: [R, 4] xyxy of each image, input pixels.
            image_shapes: (height, width) of each image in the input.
            targets: of each image, in training.
        """
        if not self.training or targets is None:
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = super().forward(
                features, proposals, image_shapes, targets
            )
            return found
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        loss_classifier, loss_box = fastrcnn_loss(*self.box_predictor(box_features), labels, regression)
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes, rows = (
            [tensor[keep] for tensor, keep in zip(tensors, positive, strict=True)]
            for tensors in (proposals, matched)
        )
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        classes = torch.cat([label[keep] for label, keep in zip(labels, positive, strict=True)])
        # A mean of nothing would be no number.
        loss_mask = logits.sum() * 0
        if len(classes):
            side = int(logits.shape[-1])
            shapes = [
                self.targets(t["masks"], b, r, side) for t, b, r in zip(targets, boxes, rows, strict=True)
            ]
            loss_mask = self.loss(logits, classes, torch.cat(shapes))
        losses = {"loss_classifier": loss_classifier, "loss_box_reg": loss_box, "loss_mask": loss_mask}
        if self.has_keypoint():
            pooled = self.keypoint_roi_pool(features, boxes, image_shapes)
            heatmaps = self.keypoint_predictor(self.keypoint_head(pooled))
            losses["loss_keypoint"] = keypointrcnn_loss(
                heatmaps, boxes, [target["keypoints"] for target in targets], rows
            )
        return [], losses


def centred_targets(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
    """What the masks of boxes should be where Detectron2's rule pastes them: [n, side, side] of 0 and 1.

    Cells are sampled with pixels' centres half a pixel from their corners, and cut at a half.

    Args:
        masks: [G, H, W] of the objects.
        boxes: [n, 4] xyxy.
        rows: [n] the object of each box.
        side: of the targets.
    """
    rois = torch.cat([rows[:, None].to(boxes.dtype), boxes], 1)
    sampled: Tensor = roi_align(masks[:, None].to(boxes.dtype), rois, side, aligned=True)[:, 0]
    return (sampled >= 0.5).to(boxes.dtype)


def binary_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Mean over pixels of the binary cross-entropy of the box's class.

    Args:
        logits: [N, K, M, M].
        classes: [N].
        targets: [N, M, M] 0 to 1, the part of the object in each cell.
    """
    own = logits[torch.arange(len(classes), device=classes.device), classes]
    return binary_cross_entropy_with_logits(own, targets)


def multinomial_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Mean over pixels of the cross-entropy between the box's class, where its object is, and background elsewhere.

    Args:
        logits: [N, K, M, M].
        classes: [N].
        targets: [N, M, M] 0 to 1, the part of the object in each cell.
    """
    likely = logits.float().log_softmax(1)
    own = likely[torch.arange(len(classes), device=classes.device), classes]
    return -(targets * own + (1 - targets) * likely[:, 0]).mean()
