"""Anchors around a cell of a feature map (Faster R-CNN, section 3.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def cell_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, by_size: bool = False, whole: bool = True
) -> Tensor:
    """[A, 4] float32 xyxy around 0: an anchor of area size² for each size and each ratio of height to width.

    Args:
        sizes: pixels.
        ratios: height / width.
        by_size: all ratios of the first size come first, not all sizes of the first ratio.
        whole: round to whole pixels.
    """
    heights = torch.tensor(ratios, dtype=torch.float32, device="cpu").sqrt()
    sides = torch.tensor(sizes, dtype=torch.float32, device="cpu")
    h, w = ((part[:, None] * sides) for part in (heights, 1 / heights))  # [ratios, sizes]
    h, w = ((side.T if by_size else side).flatten() for side in (h, w))
    anchors = torch.stack([-w, -h, w, h], dim=1) / 2
    return anchors.round() if whole else anchors
