"""What is asked of each image of a batch, as tensors on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.instances import Options


class DetectionLimits:
    """What is asked of each image of a batch, in one tensor on the device."""

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        options: Sequence[Options],
        allowed: Tensor,
        device: torch.device,
    ) -> None:
        """Upload the limits. That waits for what the device was told before, so it comes first in a batch.

        Args:
            sizes: (height, width) of each image in the input.
            options: of each image.
            allowed: [B, classes] bool, for each image the network's outputs that may be found.
            device: where to.
        """
        rows = [[w, h, w, h, o.score_threshold, o.limit] for (h, w), o in zip(sizes, options, strict=True)]
        table = torch.cat([torch.tensor(rows, dtype=torch.float32), allowed.float()], 1).to(device)
        self.image_ends = table[:, None, :4]  # [B, 1, 4]
        self.score_threshold = table[:, 4, None, None]  # [B, 1, 1]
        self.max_instances = table[:, 5].long()  # [B]
        self.allowed = table[:, None, 6:] > 0  # [B, 1, classes]
