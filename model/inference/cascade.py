"""Cascade R-CNN: box heads in a row, each beginning from the boxes of the one before (Cai and Vasconcelos, 2018)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from model.inference.proposals import clip_boxes
from model.inference.roi_heads import BoxHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.features import FeatureMaps
    from model.kernels.convolution import Format
    from model.network.conventions import Conventions

SHARED = ("box_roi_pool", "box_coder", "score_thresh", "nms_thresh", "detections_per_img")


class CascadeBoxHead(BoxHead):
    """Classes by the mean of all stages' probabilities, boxes by the last stage.

    A stage has one box for all classes, whose weights are given for each of them.
    """

    def __init__(self, heads: Any, form: Format, conventions: Conventions) -> None:
        """heads: a first box head and predictor, and those of the other stages in `cascade`."""
        rules = {name: getattr(heads, name) for name in SHARED}
        parts = [
            SimpleNamespace(box_head=stage.box_head, box_predictor=stage.box_predictor, **rules)
            for stage in (heads, *heads.cascade)
        ]
        super().__init__(parts[-1], form, conventions)
        self._earlier = [BoxHead(part, form, conventions) for part in parts[:-1]]

    def extract(
        self, maps: FeatureMaps, proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """All stages' features side by side [ΣR, stages * D], and the boxes that the last stage begins from.

        Args:
            maps: of the batch.
            proposals: [R, 4] xyxy of each image, input pixels.
            sizes: (height, width) of each image in the input, to which boxes are cut.
        """
        counts, columns = [len(boxes) for boxes in proposals], []
        for stage in self._earlier:
            features = stage.features(maps, proposals)
            columns.append(features)
            proposals = [
                clip_boxes(stage.decode_one(rows, boxes), size)
                for rows, boxes, size in zip(torch.split(features, counts), proposals, sizes, strict=True)
            ]
        columns.append(self.features(maps, proposals))
        return torch.cat(columns, 1), proposals

    def _probabilities(self, features: Tensor) -> Tensor:
        stages = features.chunk(len(self._earlier) + 1, 1)
        scores = super()._probabilities(stages[-1])
        for stage, own in zip(self._earlier, stages, strict=False):
            scores = scores + stage._probabilities(own)  # noqa: SLF001 - of its own class
        return scores / len(stages)

    def _deltas(self, features: Tensor) -> Tensor:
        return super()._deltas(features.chunk(len(self._earlier) + 1, 1)[-1])
