"""RoIPool, RoIAlign's predecessor (Fast R-CNN, section 2.1), to measure what RoIAlign gains (Mask R-CNN, Table 2c).

It rounds a box to whole cells of the feature map and takes the largest value of each bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

from model.kernels.roi_align import level_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class PyramidRoIPool(nn.Module):
    """Takes the place of torchvision's MultiScaleRoIAlign, over a pyramid or a single feature map."""

    def __init__(self, bins: int, strides: Sequence[int]) -> None:
        """bins: per side of the output. strides: of the feature maps "0", "1", …, input pixels per cell."""
        super().__init__()
        self.bins, self.strides = bins, tuple(strides)
        self.output_size = (bins, bins)

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], _image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """[R, C, bins, bins] of the boxes' type.

        Args:
            features: [B, C, H, W] each.
            boxes: of each image [R_i, 4] xyxy, input pixels.
            _image_sizes: torchvision's interface passes them.
        """
        together = torch.cat(boxes)
        counts = torch.tensor([len(b) for b in boxes], device=together.device)
        images = torch.repeat_interleave(torch.arange(len(boxes), device=together.device), counts)
        rois = torch.cat([images[:, None].to(together.dtype), together], 1)  # [R, 5] image, xyxy
        maps = [features[str(n)].to(together.dtype) for n in range(len(self.strides))]
        level = level_of(together, len(maps)) if len(maps) > 1 else images * 0
        pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], self.bins, self.bins))
        for n, (map_, stride) in enumerate(zip(maps, self.strides, strict=True)):
            (rows,) = torch.where(level == n)
            # Not an assignment: the gradient has to find its way to every level.
            pooled = pooled.index_add(0, rows, roi_pool(map_, rois[rows], self.bins, 1 / stride))
        return pooled
