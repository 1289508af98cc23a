"""The forward pass of architectures that the fast parts are not made for: C4, RoIPool, softmax and agnostic masks.

torchvision's own modules compute them, one after the other, so that whatever `maskserve train` writes can be served.
They are the paper's ablations, not what people deploy.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models.detection.image_list import ImageList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from model.inference.roi_heads import Detections
    from model.instances import Options
    from model.kernels.convolution import Format


class TorchvisionFallback:
    """A torchvision detector on a device, from normalised images to detections and their masks."""

    def __init__(self, network: nn.Module, form: Format) -> None:
        """network: in evaluation mode, on the CPU; what is kept is a copy."""
        self._form = form
        self._network: Any = copy.deepcopy(network).to(form.device, torch.float32).eval()

    def __call__(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        allowed: Tensor,
        options: Sequence[Options],
    ) -> tuple[list[Detections], list[Tensor | None]]:
        """Detections of each image by falling score, in input pixels, and [N, M, M] probabilities where wanted.

        Args:
            images: [B, 3, H, W] normalised.
            sizes: (height, width) of each image in it.
            allowed: [B, classes] bool, for each image the network's outputs that may be found.
            options: of each image.
        """
        network, form = self._network, self._form
        half = form.dtype != torch.float32
        with torch.autocast(form.device.type, form.dtype if half else None, enabled=half):
            features = network.backbone(images.float())
        # Boxes and masks in float32 whatever the features were computed in.
        features = {name: feature.float() for name, feature in features.items()}
        proposals, _ = network.rpn(ImageList(images.float(), list(sizes)), features)
        found, _ = network.roi_heads(features, proposals, list(sizes))
        detections: list[Detections] = []
        grids: list[Tensor | None] = []
        for result, own, wanted in zip(found, allowed, options, strict=True):
            kept = own[result["labels"]] & (result["scores"] >= wanted.score_threshold)
            (rows,) = torch.where(kept)
            rows = rows[: wanted.max_instances]
            detections.append((result["boxes"][rows], result["scores"][rows], result["labels"][rows]))
            masked = "masks" in result and wanted.masks
            grids.append(result["masks"][rows, 0].float().cpu() if masked else None)
        return detections, grids
