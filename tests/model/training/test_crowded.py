"""Images with 400 objects: which anchors and boxes are sampled, and which masks are learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from model.data.masks import InstanceMasks, ObjectMask
from model.data.shapes import Shapes
from model.training.train import read_log, train
from tests.model.thin import FIVE, MODEL, RECIPE

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from model.data import Sample

SIDE, STEP = 160, 8


class Crowd(Shapes):
    """20 × 20 objects of 6 × 6 pixels, each of which lacks one quarter, on 160 × 160 pixels."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        crops, pixels = [], np.zeros((SIDE, SIDE, 3), np.uint8)
        for number, (y, x) in enumerate(np.ndindex(SIDE // STEP, SIDE // STEP)):
            bitmap = np.ones((6, 6), np.uint8)
            row, column = divmod(number % 4, 2)
            bitmap[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = 0
            crops.append(ObjectMask(STEP * x + 1, STEP * y + 1, bitmap))
            pixels[STEP * y + 1 : STEP * y + 7, STEP * x + 1 : STEP * x + 7] = 200 * bitmap[..., None]
        masks = InstanceMasks(crops, (SIDE, SIDE))
        labels = np.full(len(crops), self.categories[0].id)
        return replace(
            sample, pixels=pixels, boxes=masks.boxes(), labels=labels, masks=masks, visibility=None
        )

    def size(self, _index: int) -> tuple[int, int]:
        return SIDE, SIDE


def test_four_hundred_objects_are_sampled_and_learned(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor_labels: list[Tensor] = []
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    learned: list[tuple[Tensor, Tensor, Tensor]] = []
    assign = RegionProposalNetwork.assign_targets_to_anchors
    select, project = RoIHeads.select_training_samples, roi_heads.project_masks_on_boxes

    def assigning(self: Any, anchors: Any, targets: Any) -> Any:
        labels, boxes = assign(self, anchors, targets)
        anchor_labels.extend(labels)
        return labels, boxes

    def selecting(self: Any, proposals: Any, targets: Any) -> Any:
        made = select(self, proposals, targets)
        chosen.extend(zip(made[0], made[1], made[2], strict=True))
        return made

    def projecting(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
        targets = project(masks, boxes, rows, side)
        learned.append((boxes, rows, targets))
        return targets

    monkeypatch.setattr(RegionProposalNetwork, "assign_targets_to_anchors", assigning)
    monkeypatch.setattr(RoIHeads, "select_training_samples", selecting)
    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", projecting)
    recipe = replace(
        RECIPE, steps=1, batch_size=1, rois=512, positives=0.5, proposals=(1000, 600), flip=0.0,
        min_sizes=(SIDE,), max_size=SIDE,
    )  # fmt: skip
    crowd = Crowd(seed=1, length=1)
    objects = torch.from_numpy(crowd[0].boxes)
    train(crowd, MODEL, recipe, run)
    # Each object has an anchor at least.
    assert int((anchor_labels[0] == 1).sum()) >= 400
    boxes, rows, labels = chosen[0]
    assert len(boxes) == 512
    positive = labels > 0
    assert int(positive.sum()) == 256
    own = box_iou(boxes, objects)[torch.arange(512), rows]
    assert (own[positive] >= 0.5).all()
    assert (own[~positive] < 0.5).all()
    assert len(rows[positive].unique()) > 128
    # Of a box that is its object's, the mask lacks the object's quarter.
    boxes, rows, targets = learned[0]
    exact = (boxes == objects[rows]).all(1)
    assert int(exact.sum()) > 100
    for row, target in zip(rows[exact].tolist(), targets[exact], strict=True):
        quarters = target.reshape(2, 14, 2, 14)[:, 2:-2, :, 2:-2].mean((1, 3)).flatten()
        assert quarters.argmin() == row % 4
        assert sorted(quarters.round().tolist()) == [0, 1, 1, 1]
    (record,) = read_log(run / "log.jsonl")
    assert all(np.isfinite(record[name]) and record[name] > 0 for name in FIVE)
